"""Whether the balancer of a step has something to balance."""

from __future__ import annotations

from dlas.config.problems import Problem
from dlas.config.schema import Config
from dlas.config.wiring.components import at, facts


def check_balance(config: Config, problems: list[Problem]) -> None:
    """Notes keys that the step does not write, losses that are not there, and weights that cannot be shares."""
    for step in (config.steps or {}).values():
        balance = step.balance
        if balance is None or step.losses is None or step.injectors is None:
            continue
        found = [facts(section, []) for section in step.injectors.values()]
        written = {reference.name for each in found for reference in each.writes}
        if balance.at is not None and balance.at not in written and all(each.entry and each.complete for each in found):
            at(balance, "at", problems).note(
                f"no injector of this step writes '{balance.at}', so no gradient is recorded there",
                f"it writes: {', '.join(sorted(written)) or 'nothing'}",
            )
        for name in balance.exclude or []:
            if name not in step.losses:
                at(balance, "exclude", problems).note(f"the step has no loss '{name}'", f"it has: {', '.join(step.losses)}")
        for name, loss in step.losses.items():
            if loss.weight is not None and loss.weight <= 0 and name not in (balance.exclude or []):
                at(loss, "weight", problems).note(
                    "the weight of a balanced loss is its share of the gradient, which must be above 0", "or exclude the loss"
                )
