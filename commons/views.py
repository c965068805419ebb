"""What the coordinator shows of its state: typed answers of the `Read` and `Watch` calls.

Views are derived, never a source: each can be rebuilt from the journal and the live heartbeats.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SiteView(View):
    """One row of the live table."""

    site: str
    partner: str
    payer: str
    domain: str
    state: str
    """offline | idle | verifying | fetching | training | sealing | uploading | admitted | left out | refused | gone"""
    why: str = ""
    """Why it waits, was left out or refused; empty when it works."""
    step: int = 0
    steps: int = 0
    tokens_per_s: float = 0.0
    loss: float | None = None
    held_out_loss: float | None = None
    update_norm: float | None = None
    """L2 norm of its last update that was admitted since the coordinator started, as that measured it; what is masked is
    not in it."""
    epsilon: float | None = None
    """Spent of its privacy over all runs, by the journal, at the charter's delta; None where updates are not noised."""
    epsilon_max: float | None = None
    """What it may spend."""
    bytes_up: int = 0
    bytes_down: int = 0
    model_bytes: int = 0
    """Weights, gradients and moments its trainer held in its last round; 0: not known yet."""
    spend_left_micro: int = 0
    gflop: int = 0
    """10^9 operations of its last admitted round in this run; 0: there is none."""
    device_ms: int = 0
    """What they took, summed over its devices."""


class RoundView(View):
    round: int
    charter_version: int
    base: str
    state: str | None = None
    """Digest of the combined state; None while the round is open."""
    contributors: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    """Those of the missing that stayed at work on it when it closed."""
    late: dict[str, str] = {}
    """site -> by how much, and what its update of an earlier round counts in this one."""
    left_out: dict[str, str] = {}
    """site -> why it was not assigned."""
    rejected: dict[str, str] = {}
    losses: dict[str, float] = {}
    """site -> mean training loss, nats per byte."""
    held_out: dict[str, float] = {}
    """site -> held-out loss of the base state, nats per byte."""
    probe_loss: float | None = None
    """Of the new state on the charter's probe, by the median of the sites; None: not measured."""
    probe_change_ppm: int | None = None
    """Against the base."""
    verdict: str = ""
    """good | measured | rolled-back | unmeasured (`commons.verdict`); empty: the charter names no probe."""
    worth_ppm: dict[str, int] = {}
    """``site/round`` of an update -> what the probe loss rises by without it; in rounds that were appraised."""
    experts_ppm: dict[str, int] = {}
    """The same of experts."""
    tokens: int = 0
    """Trained on for the updates that are in it."""
    bytes_up: int = 0
    bytes_down: int = 0
    opened_ms: int = 0
    closed_ms: int | None = None
    uplink_trunk: str = ""
    uplink_expert: str = ""


class RunView(View):
    run: str
    phase: str
    """training | evaluating | finished | stopped"""
    round: int
    rounds: int
    charter_version: int
    state: str
    reason: str = ""
    sites: tuple[SiteView, ...] = ()
    history: tuple[RoundView, ...] = ()
    evaluation: dict[str, float] = {}
    """domain -> held-out loss of the final state as its site measured it."""
    journal_size: int = 0


class ExpertView(View):
    """One expert of the model in force."""

    expert: str
    index: int
    """In the released model."""
    site: str | None
    """The site that trains it; None: in escrow."""
    partner: str | None
    parameters: int
    like: str | None = None
    """The expert it began as a copy of."""
    from_round: int = 0
    """The first round of the run that was planned with it; 0: the next one is."""
    trained_round: int = 0
    """The last round that its site's update is in; 0: none yet."""
    tokens: int = 0
    """Given to it by the run's updates, summed over layers; of updates that were noised or masked nobody knows."""
    routed: dict[str, int] = {}
    """The same by the domain of the site whose text it was."""


class ExpertsView(View):
    charter_version: int
    run: str = ""
    """The latest run; empty: there was none."""
    experts: tuple[ExpertView, ...] = ()
    retired: tuple[str, ...] = ()


class LotView(View):
    """A grant, conversion or refund that has something in it."""

    id: str
    amount_micro: int
    free_micro: int
    """Neither held, spent nor lost."""
    priority: int
    not_before_ms: int
    expires_ms: int
    """0: never."""


class BudgetView(View):
    """granted + refunded = available + later + held + spent + expired."""

    partner: str
    granted_micro: int
    """Grants and conversions."""
    held_micro: int
    spent_micro: int
    available_micro: int
    contributed_micro: int
    later_micro: int = 0
    """Granted, but not to be spent yet."""
    expired_micro: int = 0
    refunded_micro: int = 0
    disputed_micro: int = 0
    """Charged and resting in suspense; part of what is spent."""
    closed: bool = False
    """The partner has left the consortium."""
    lots: tuple[LotView, ...] = ()
    """In the order they are spent; the first 50."""
    lots_total: int = 0


class ChargeView(View):
    id: str
    run: str
    round: int
    site: str
    payer: str
    held_micro: int
    charged_micro: int
    state: str
    """held | settled | released | expired"""
    partner: str = ""
    """Owner of the site, who contributes."""
    reversed_micro: int = 0
    disputed_micro: int = 0
    """Resting in suspense now."""
    accepted: bool = True
    """False: a rejected update was charged."""
    tops: str = ""
    """The hold that this one tops up."""
    at_ms: int = 0
    """When it was made."""
    ended_ms: int = 0
    """When it was settled, released or expired; 0: it is held."""


class PledgeView(View):
    partner: str
    device: str
    amount_ms: int
    """Not yet converted into budget."""


class RateView(View):
    device: str
    precision: str
    micro_per_gflop: int
    micro_per_pflop: int
    micro_per_device_second: int
    peak_gflops: int


class RateCardView(View):
    digest: str
    """Holds and charges name the card they are priced by."""
    since_ms: int
    """In force from then on, until the next one's."""
    currency: str
    rates: tuple[RateView, ...]


class BudgetsView(View):
    currency: str
    budgets: tuple[BudgetView, ...]
    charges: tuple[ChargeView, ...] = ()
    """The latest 1,000, oldest first."""
    charges_total: int = 0
    pledges: tuple[PledgeView, ...] = ()
    cards: tuple[RateCardView, ...] = ()
    """The latest 10 changes, oldest first; the last card is in force."""


class DisputeView(View):
    id: str
    """Digest of the dispute's text."""
    transfer: str
    """The settle it is about."""
    partner: str
    """The payer, who raised it and may withdraw it."""
    owner: str
    """The site's owner, who may concede it."""
    amount_micro: int
    reason: str
    why: str
    raised_ms: int
    index: int
    """Its journal record."""
    open: bool
    upheld_micro: int | None = None
    """What the payer got back; None while it is open."""
    ended_by: str = ""
    """withdrawn | conceded | voted"""


class DisputesView(View):
    currency: str
    disputes: tuple[DisputeView, ...]
    """The latest 1,000 (of those asked for), oldest first."""
    disputes_total: int = 0


class BallotView(View):
    voter: str
    choice: str
    index: int
    at_ms: int = 0


class MotionView(View):
    member: str
    motion: str
    reason: str
    at_ms: int
    index: int = 0


class ProposalPledgeView(View):
    member: str
    to: str
    """Whose budget gets it."""
    amount_micro: int
    expires_ms: int
    state: str
    """held | paid | returned"""
    index: int


class ProposalView(View):
    id: str
    number: int
    title: str
    proposer: str
    feature: str
    parameters: dict[str, object]
    state: str
    """One of `commons.course.State`, at the time it was asked for."""
    opened_ms: int
    closes_ms: int
    effective_round: int
    type: str = "feature.enable"
    """Which of the charter's rules it is voted by."""
    index: int = 0
    """Its journal record; its opening is the next one."""
    decided_ms: int | None = None
    outcome_index: int | None = None
    eta_ms: int | None = None
    """When it may be carried out at the earliest; None: it has not succeeded."""
    executed_round: int | None = None
    executed_ms: int | None = None
    execution_index: int | None = None
    charter_version: int | None = None
    patch: tuple[dict[str, object], ...] = ()
    electorate: dict[str, int] = {}
    dormant: tuple[str, ...] = ()
    officers: tuple[str, ...] = ()
    quorum_percent: int = 50
    pass_percent: int = 50
    share: str = ""
    members: str = ""
    objection: str = ""
    candidates: tuple[str, ...] = ()
    credits: int = 0
    tiers: tuple[tuple[str, ...], ...] = ()
    """Of a roadmap ballot that has ended: the most wanted first."""
    motions: tuple[MotionView, ...] = ()
    for_weight: int = 0
    against_weight: int = 0
    abstain_weight: int = 0
    ballots: tuple[BallotView, ...] = ()
    rules: str = ""
    """Digest of the opening's rules; a ballot names it."""
    electorate_digest: str = ""
    lodged: int = 0
    """How many of its ballots sites keep too."""
    needs_micro: int = 0
    """It is carried out only with pledges of so much."""
    pledged_micro: int = 0
    """What of its pledges stands, or was paid."""
    pledges: tuple[ProposalPledgeView, ...] = ()


class ProposalsView(View):
    proposals: tuple[ProposalView, ...]


class JournalView(View):
    size: int
    root: str
    checkpoint: str
    """The signed checkpoint note."""
    published: str = ""
    """The newest checkpoint that enough witnesses cosigned, with their signatures; empty when there is none."""
    last_ms: int = 0
    """When its last record was made."""
    unwitnessed_since_ms: int | None = None
    """When the oldest record was made that `published` does not cover; None when none waits for witnesses."""


class CharterView(View):
    version: int
    digest: str
    text: str
    """The charter's canonical JSON."""
