// Roadmap ballots, counted as commons/ranking.py counts them: Schulze's method, or votes that cost their square.

import { order } from "./bytes.js";

const NAME = "[a-z][a-z0-9-]{0,31}";
export const RANKED = new RegExp(`^rank ${NAME}(?: > ${NAME})*$`);
export const QUADRATIC = new RegExp(`^credits ${NAME} [1-9][0-9]{0,3}(?:, ${NAME} [1-9][0-9]{0,3})*$`);

/** Whether a choice answers the question: known candidates, each once, and no more credits than there are. */
export function readable(choice, candidates, credits) {
  if (credits) {
    const votes = votesOf(choice);
    const cost = [...votes.values()].reduce((sum, n) => sum + n * n, 0n);
    return [...votes.keys()].every((name) => candidates.includes(name)) && cost > 0n && cost <= BigInt(credits);
  }
  const names = rankingOf(choice);
  return names.length > 0 && new Set(names).size === names.length && names.every((name) => candidates.includes(name));
}

/** Tiers and scores that follow from readable ballots: `counted` is voter -> {choice}, weights are BigInts. */
export function ranked(candidates, credits, electorate, counted) {
  const weighed = [...counted].map(([voter, { choice }]) => [choice, electorate.get(voter)]);
  const scores = credits ? quadratic(candidates, weighed) : schulze(candidates, weighed);
  const tiers = new Map();
  for (const name of [...candidates].sort(order)) tiers.set(scores.get(name), [...(tiers.get(scores.get(name)) ?? []), name]);
  const best = [...tiers.keys()].sort((a, b) => (a > b ? -1 : 1));
  return { tiers: best.map((score) => tiers.get(score)), scores };
}

function quadratic(candidates, weighed) {
  const given = weighed.map(([choice, weight]) => [votesOf(choice), weight]);
  const score = (name) => given.reduce((sum, [votes, weight]) => sum + weight * (votes.get(name) ?? 0n), 0n);
  return new Map(candidates.map((name) => [name, score(name)]));
}

/** Candidate -> how many others it beats by a stronger path. Those a ballot leaves out stand last, level. */
function schulze(candidates, weighed) {
  const all = [...candidates.keys()];
  const table = () => all.map(() => all.map(() => 0n));
  const [prefer, path] = [table(), table()];
  for (const [choice, weight] of weighed) {
    const names = rankingOf(choice);
    const place = candidates.map((name) => (names.includes(name) ? names.indexOf(name) : names.length));
    for (const a of all) for (const b of all) if (place[a] < place[b]) prefer[a][b] += weight;
  }
  for (const a of all) for (const b of all) if (prefer[a][b] > prefer[b][a]) path[a][b] = prefer[a][b];
  for (const through of all) {
    for (const a of all) {
      for (const b of all) {
        if (a === b || through === a || through === b) continue;
        const weakest = path[a][through] < path[through][b] ? path[a][through] : path[through][b];
        if (weakest > path[a][b]) path[a][b] = weakest;
      }
    }
  }
  const beats = (a) => all.filter((b) => a !== b && path[a][b] > path[b][a]).length;
  return new Map(all.map((a) => [candidates[a], BigInt(beats(a))]));
}

const rankingOf = (choice) => (RANKED.test(choice) ? choice.slice("rank ".length).split(" > ") : []);

/** Empty when a candidate is named twice or it is no such choice. */
function votesOf(choice) {
  if (!QUADRATIC.test(choice)) return new Map();
  const pairs = choice.slice("credits ".length).split(", ").map((pair) => pair.split(" "));
  const found = new Map(pairs.map(([name, number]) => [name, BigInt(number)]));
  return found.size === pairs.length ? found : new Map();
}
