// Counting votes as commons/tally.py counts them: one opening, its ballots and motions give one outcome. Weights are BigInts.

import { CHOICES } from "./ballots.js";
import { ranked, readable } from "./ranking.js";

const CALLERS = 2;

/**
 * Count `ballots`, given as [journal index, log time in ms, fields of the ballot] in any order; `motions` likewise. What
 * makes a ballot count, and when a vote ends, stands in the Python module; signatures are checked before.
 */
export function tally(opening, ballots, nowMs, motions = []) {
  const count = new Count(opening);
  const events = [
    ...ballots.map(([index, atMs, event]) => ({ index, atMs, event, take: "ballot" })),
    ...motions.map(([index, atMs, event]) => ({ index, atMs, event, take: "motion" })),
  ];
  for (const { index, atMs, event, take } of events.sort((a, b) => a.index - b.index)) {
    count.advance(atMs);
    count[take](index, atMs, event);
  }
  count.advance(nowMs);
  return count.result(nowMs);
}

/** Whether a ballot with a good signature is one for this vote at all, whenever it came. */
export function fits(opening, ballot) {
  const answers = opening.candidates.length
    ? readable(ballot.choice, opening.candidates, opening.credits)
    : CHOICES.includes(ballot.choice);
  return (
    answers &&
    ballot.consortium === opening.consortium &&
    ballot.proposal === opening.proposal &&
    ballot.rules === opening.rulesDigest &&
    ballot.electorate === opening.electorateDigest &&
    opening.electorate.has(ballot.voter)
  );
}

/** The count as an OUTCOME record states it, weights as BigInts. */
export function facts(count) {
  const counted = [...count.counted].map(([voter, { choice, index }]) => [voter, { choice, index }]);
  const found = {
    state: count.state,
    for: count.for,
    against: count.against,
    abstain: count.abstain,
    turnout: count.turnout,
    total: count.total,
    counted: Object.fromEntries(counted),
  };
  if (!count.order) return found;
  return { ...found, order: { tiers: count.order.tiers, scores: Object.fromEntries(count.order.scores) } };
}

/** The vote as it was after each event. */
class Count {
  constructor(opening) {
    this.of = opening;
    this.counted = new Map();
    this.seen = new Set();
    this.stray = [];
    this.callers = new Set();
    this.pausedMs = null;
    this.discussed = false;
    this.extended = false;
    this.closesMs = opening.closes_ms;
    this.total = sum(opening.electorate.values());
  }

  get complete() {
    return this.counted.size === this.of.electorate.size;
  }

  takes(atMs) {
    return this.of.opened_ms <= atMs && atMs < this.closesMs && this.pausedMs === null;
  }

  /** A pause ends by itself. */
  advance(nowMs) {
    const end = this.pausedMs + this.of.windowMs;
    if (this.pausedMs !== null && nowMs >= end) this.resume(end);
  }

  ballot(index, atMs, ballot) {
    const same = JSON.stringify(ballot, Object.keys(ballot).sort());
    if (this.complete || this.seen.has(same)) return;
    if (!this.takes(atMs) || !fits(this.of, ballot)) {
      this.stray.push(index);
      return;
    }
    this.seen.add(same);
    const before = this.quorate();
    this.counted.set(ballot.voter, { choice: ballot.choice, index });
    if (!before && !this.extended && this.quorate() && this.closesMs - atMs < this.of.extend_ms) {
      this.closesMs = atMs + this.of.extend_ms;
      this.extended = true;
    }
  }

  motion(_, atMs, motion) {
    if (!this.of.electorate.has(motion.member) || this.complete) return;
    if (motion.motion === "discuss" && this.takes(atMs) && !this.discussed) {
      this.callers.add(motion.member);
      if (this.callers.size >= CALLERS) {
        this.pausedMs = atMs;
        this.discussed = true;
      }
    } else if (motion.motion === "resume" && this.pausedMs !== null && this.callers.has(motion.member)) {
      this.resume(atMs);
    }
  }

  resume(atMs) {
    this.closesMs += atMs - this.pausedMs;
    this.pausedMs = null;
  }

  weight(choice) {
    const votes = [...this.counted].filter(([, vote]) => choice === undefined || vote.choice === choice);
    return sum(votes.map(([voter]) => this.of.electorate.get(voter)));
  }

  quorate() {
    const asleep = sum(this.of.dormant.map((member) => this.of.electorate.get(member)));
    const awake = 2n * (this.total - asleep);
    return this.weight() * 200n >= BigInt(this.of.quorum_percent) * (awake > this.total ? awake : this.total);
  }

  /** Quorum; more than `pass_percent` of for and against; the share of them; the share of members. Ties fail. */
  passes() {
    const { of } = this;
    const [yes, no] = [this.weight("for"), this.weight("against")];
    if (of.objection) {
      const [top, bottom] = fraction(of.objection);
      return no * bottom < top * this.total;
    }
    const wins = of.pass_percent === 100 ? yes > 0n && no === 0n : yes * 100n > BigInt(of.pass_percent) * (yes + no);
    if (!wins || !this.quorate()) return false;
    if (of.share) {
      const [top, bottom] = fraction(of.share);
      if (yes * bottom < top * (yes + no)) return false;
    }
    return !of.members || this.enoughHeads();
  }

  enoughHeads() {
    const [top, bottom] = fraction(this.of.members);
    const heads = BigInt([...this.counted.values()].filter(({ choice }) => choice === "for").length);
    const all = BigInt(this.of.electorate.size);
    const asleep = BigInt(this.of.dormant.filter((member) => !this.counted.has(member)).length);
    const awake = 2n * (all - asleep);
    return 2n * heads * bottom >= top * (awake > all ? awake : all);
  }

  result(nowMs) {
    let phase = nowMs >= this.of.opened_ms ? "active" : "pending";
    if (this.pausedMs !== null) phase = "paused";
    else if (nowMs >= this.closesMs || this.complete) phase = "closed";
    const roadmap = this.of.candidates.length > 0;
    let state = "open";
    if (phase === "closed") state = roadmap ? "ranked" : this.passes() ? "passed" : "defeated";
    return {
      state,
      phase,
      for: this.weight("for"),
      against: this.weight("against"),
      abstain: this.weight("abstain"),
      turnout: this.weight(),
      total: this.total,
      counted: this.counted,
      closesMs: this.closesMs + (this.pausedMs === null ? 0 : nowMs - this.pausedMs),
      stray: this.stray,
      order:
        state === "ranked" ? ranked(this.of.candidates, this.of.credits, this.of.electorate, this.counted) : null,
    };
  }
}

function fraction(share) {
  const [top, bottom] = share.split("/");
  return [BigInt(top), BigInt(bottom)];
}

function sum(values) {
  let total = 0n;
  for (const value of values) total += value;
  return total;
}
