"""Several API processes behind one port, as uvicorn runs them."""

from uvicorn import Config
from uvicorn.supervisors import Multiprocess


class Processes(Multiprocess):
    """When they end, nobody can connect any more: who did would wait for an answer up to the end, and get none."""

    def terminate_all(self) -> None:
        for socket in self.sockets:
            socket.close()
        super().terminate_all()


def run_processes(config: Config) -> None:
    """Until they are asked to end."""
    Processes(config, sockets=[config.bind_socket()]).run()
