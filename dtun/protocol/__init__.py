"""Pure wire formats: records, frames inside them, control messages, and the original Go dtun's greeting."""
