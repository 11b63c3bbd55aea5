"""Checks across sections: the file as a graph of state keys, networks, steps and data.

All of it is read from the file and from the signatures of components; nothing is imported or computed. What is not known (a
component that is not registered, an architecture that does not say its sizes) is not guessed at: there no problem is noted.
"""

from __future__ import annotations

from dlas.config.problems import Problem, Severity
from dlas.config.schema import Config
from dlas.config.wiring.balance import check_balance
from dlas.config.wiring.checkpoints import check_checkpoints
from dlas.config.wiring.compiling import check_compiling
from dlas.config.wiring.devices import check_devices
from dlas.config.wiring.evaluation import check_evaluation
from dlas.config.wiring.files import check_file_names
from dlas.config.wiring.limits import check_limits
from dlas.config.wiring.names import check_names
from dlas.config.wiring.sizes import check_sizes
from dlas.config.wiring.spread import check_spread
from dlas.config.wiring.state import check_state
from dlas.config.wiring.trained import check_trained

__all__ = ["check_wiring"]


def check_wiring(config: Config, problems: list[Problem], training: bool, complete: bool = True, alone: bool = False) -> None:
    """Notes what does not fit together.

    Args:
        config: sections may have problems of their own already, and None where a value was unusable.
        problems: takes the problems.
        training: whether the file is for training or for testing.
        complete: False where part of the file could not be read: then only what can be judged without it is.
        alone: the file is about to run in one process, where what its strategy cannot do only earns a warning; so it does in
            files that name none.
    """
    check_limits(config, problems, training)
    check_file_names(config, problems)
    if not complete:
        return
    check_names(config, problems, training)
    unwritten = check_state(config, problems, training)
    if training:
        check_balance(config, problems)
        check_trained(config, problems, unwritten)
    check_sizes(config, problems, training)
    check_checkpoints(config, problems, training)
    named = config.distributed is not None and config.distributed.strategy is not None
    severity: Severity = "error" if named and not alone else "warning"
    check_devices(config, problems, training, severity)
    check_compiling(config, problems, training)
    check_evaluation(config, problems)
    if training and not any(problem.severity == "error" for problem in problems):  # else values may be missing
        check_spread(config, problems, severity)
