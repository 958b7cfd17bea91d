"""What each tenant has been served, so that the one served least is next.

The virtual token counter of "Fairness in Serving Large Language Models" (Sheng et al., 2024): a
tenant's counter grows by what its requests really cost, computed prompt tokens (not cached ones,
and none twice) and output tokens, each with a weight. Among those who wait, the tenant with the
least is next; in which order its own sequences come is the policy's affair (policy.py).

A tenant that comes, or comes back, is lifted to the level: what each tenant would have been served
had all who were active got even shares. So nobody saves up by idling. (In the paper it is lifted to
the least of the active. With that, ever new tenants could starve one that was served a little: all
would start below it. The level rises with whatever is served, so everyone's turn comes.)

Nothing here is done per token: prompts are charged as chunks are planned, outputs in bulk by slot,
every `CHARGE_EVERY` steps, when a slot is left, and before one tenant is chosen among several. So a
counter lags by at most so many steps of the tenant's running sequences.
"""

from bisect import bisect_left, bisect_right, insort

import numpy as np

from scheduler.core.events import Int32Column

CHARGE_EVERY = 16
_MAX_IDLE = 1024
"""Idle tenants remembered at most: those whose counter is above the level. Beyond that the least of
them are forgotten, who gain the least by it."""


class Account:
    """A tenant while it has sequences that have not ended."""

    __slots__ = ("index", "num_live", "served", "tenant")

    def __init__(self, tenant: str, index: int, served: float) -> None:
        self.tenant = tenant
        self.index = index
        """Stands for it in columns, as long as it is active."""
        self.served = served
        """Its counter; never decreases."""
        self.num_live = 0


class Accounts:
    """The counters of the active tenants, and of some idle ones."""

    def __init__(self, input_weight: float, output_weight: float) -> None:
        self._input_weight = input_weight
        self._output_weight = output_weight
        self._active: dict[str, Account] = {}
        self._by_index: list[Account | None] = []
        self._vacant: list[int] = []
        self._idle: dict[str, float] = {}
        self._idle_in_order: list[tuple[float, str]] = []
        """The same, those served least first."""
        self._level = 0.0

    @property
    def num_active(self) -> int:
        return len(self._active)

    def find(self, tenant: str) -> Account | None:
        """The account of a tenant; None if it has no sequence."""
        return self._active.get(tenant)

    def open(self, tenant: str) -> Account:
        """The account of a tenant that has one sequence more."""
        account = self._active.get(tenant)
        if account is None:
            served = max(self._recall(tenant), self._level)
            if not self._vacant:
                self._vacant.append(len(self._by_index))
                self._by_index.append(None)
            account = Account(tenant, self._vacant.pop(), served)
            self._by_index[account.index] = self._active[tenant] = account
        account.num_live += 1
        return account

    def close(self, account: Account) -> None:
        """One of its sequences has ended, and is charged for."""
        account.num_live -= 1
        if account.num_live > 0:
            return
        del self._active[account.tenant]
        self._by_index[account.index] = None
        self._vacant.append(account.index)
        self._idle[account.tenant] = account.served
        insort(self._idle_in_order, (account.served, account.tenant))
        self._forget_idle()

    def charge_input(self, account: Account, num_tokens: int) -> None:
        """Prompt tokens are computed for it."""
        self._charge(account, self._input_weight * num_tokens)

    def charge_output(self, account: Account, num_tokens: int) -> None:
        """It got output tokens."""
        self._charge(account, self._output_weight * num_tokens)

    def charge_outputs(self, index: Int32Column, num_tokens: Int32Column) -> None:
        """The same for many slots at once; entries of 0 tokens may name anybody."""
        totals = np.bincount(index, num_tokens)
        for i in np.flatnonzero(totals).tolist():
            account = self._by_index[i]
            assert account is not None, "tokens of a tenant that is idle"
            self.charge_output(account, int(totals[i]))

    def _charge(self, account: Account, cost: float) -> None:
        account.served += cost
        self._level += cost / len(self._active)

    def _recall(self, tenant: str) -> float:
        """The counter of a tenant that comes back, which is idle no more; 0 if it is forgotten."""
        served = self._idle.pop(tenant, None)
        if served is None:
            return 0.0
        del self._idle_in_order[bisect_left(self._idle_in_order, (served, tenant))]
        return served

    def _forget_idle(self) -> None:
        """Whoever would be lifted anyway need not be remembered, nor more than a number."""
        order = self._idle_in_order
        num_lifted = bisect_right(order, self._level, key=lambda entry: entry[0])
        num_forgotten = max(num_lifted, len(order) - _MAX_IDLE)
        for _, tenant in order[:num_forgotten]:
            del self._idle[tenant]
        del order[:num_forgotten]

    def check_integrity(self) -> None:
        """Raises AssertionError unless indices are one-to-one and what is kept is bounded."""
        assert all(self._by_index[a.index] is a for a in self._active.values()), "index is off"
        named = sum(account is not None for account in self._by_index)
        assert named == len(self._active), "an idle tenant has an index"
        assert all(account.num_live > 0 for account in self._active.values()), "idle but active"
        order = self._idle_in_order
        assert order == sorted((served, tenant) for tenant, served in self._idle.items()), (
            "idle tenants are out of order"
        )
        assert len(order) <= _MAX_IDLE, "too many idle tenants"
