"""Keep Lightning quiet, so that what an example prints can be seen."""

import logging
import warnings


def quiet_lightning() -> None:
    """Hide Lightning's log messages and its advice on speed."""
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
