"""An asyncio event loop that calls readers straight from epoll."""
