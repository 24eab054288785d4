"""What can be asked of a running dtun at its control socket."""

from collections.abc import Callable, Mapping

from dtun.errors import DtunError
from dtun.service.control import Answer, Command, Request
from dtun.service.reload import Reloader
from dtun.service.role import FAILED, Kicks, Role


def commands(
    service: Role, reloader: Reloader, status: Callable[[], dict[str, object]], stop: Callable[[], None]
) -> Mapping[str, Command]:
    """Each command by its name."""

    async def tell(request: Request) -> Answer:
        del request
        return status()

    async def reload(request: Request) -> Answer:
        lines = await reloader.reload(dry_run=request.get("dry_run") is True)
        return {"lines": lines, "failed": any(line.startswith(FAILED) for line in lines)}

    async def kick(request: Request) -> Answer:
        name = request.get("id")
        if not isinstance(service, Kicks):
            raise DtunError("only a server has clients whose sessions could be ended")
        if not isinstance(name, str):
            raise DtunError("whose session? give an id")
        return {"lines": [service.kick(name)]}

    async def end(request: Request) -> Answer:
        del request
        stop()
        return {"lines": ["it stops"]}

    return {"status": tell, "reload": reload, "kick": kick, "stop": end}
