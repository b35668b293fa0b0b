"""`python -m worker` and `readout worker`: settings → load → warm up → serve until SIGTERM."""

from __future__ import annotations

import signal
import sys

import structlog
from pydantic import ValidationError

from heads_registry.manifest import RegistryError
from jobs.logs import configure_logging
from worker.engine import TorchEngine
from worker.process import run_worker
from worker.settings import WorkerSettings

log = structlog.get_logger("worker")


def main() -> int:
    """Serve until told to stop.

    Returns:
        The exit status: 0 after SIGTERM, 2 where the settings or the registry are wrong.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        settings = WorkerSettings()
    except ValidationError as error:
        names = ", ".join(str(issue["loc"][0]) for issue in error.errors())
        print(f"wrong settings (READOUT_…): {names}\n{error}", file=sys.stderr)
        return 2
    configure_logging(settings.log_format)
    log.info("worker.starting", **effective(settings))
    try:
        engine = TorchEngine.from_settings(settings)
        engine.warm_up(settings.warm_models)
    except RegistryError as error:
        log.error("worker.registry_broken", reason=str(error))
        return 2
    run_worker(settings, engine)
    return 0


def effective(settings: WorkerSettings) -> dict[str, object]:
    """The configuration as it is, for the log; secrets are redacted by their type."""
    return {"settings": settings.model_dump(mode="json", exclude={"redis_url"})}


if __name__ == "__main__":
    sys.exit(main())
