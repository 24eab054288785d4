"""What is not netlink's routing part: the packet filter and the resolver, each made when it is first needed."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from dtun.platform.linux.nftables.firewall import Firewall

if TYPE_CHECKING:
    from dtun.platform.linux.resolved import Resolved


class Services:
    """Those of one instance. `filters_taken` is called when others take something from the packet filter's `table`."""

    def __init__(self, table: str, filters_taken: Callable[[], None]) -> None:
        self.table = table
        self._filters_taken = filters_taken

    @cached_property
    def firewall(self) -> Firewall:
        return Firewall(self.table, self._filters_taken)

    @cached_property
    def resolved(self) -> "Resolved":
        # Late: it imports a D-Bus library, which only those need who give name servers.
        from dtun.platform.linux.resolved import Resolved  # noqa: PLC0415

        return Resolved()

    async def close(self) -> None:
        """Let go of their sockets. What they have put in place stays."""
        if "firewall" in self.__dict__:
            self.firewall.close()
            del self.firewall
        if "resolved" in self.__dict__:
            await self.resolved.close()
            del self.resolved
