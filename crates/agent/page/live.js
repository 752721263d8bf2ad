// What the agent counts of each ssd, over time: numbers in, numbers out. Nothing here touches the page.

export const PARTS = ["queue", "throttle", "drive"];
export const OPS = ["read", "write", "other"];
/** All ssds together: a name that no ssd can have. */
export const ALL = "";
/** Figures are over so many seconds: with fewer, a 99.9th percentile would be one I/O. */
const RECENT_S = 5;
/** Looks that are kept of an ssd, and of all ssds together. */
const LOOKS_MAX = 330;
const LOOKS_TOTAL_MAX = 20000;

/** Where each bucket of the histograms begins, ns: the agent says. */
let floors = [0];

export function floorNs(bucket) {
  return floors[bucket] ?? floors.at(-1) * 1.125 ** (bucket - floors.length + 1);
}

export function buckets() {
  return floors.length;
}

/** A time that stands for a bucket. The shortest times count as none, as they do in `godwit top`. */
function middleNs(bucket) {
  return bucket === 0 ? 0 : (floorNs(bucket) + floorNs(bucket + 1)) / 2;
}

/** The time, ns, within which this share of a histogram was done; null of an empty one. */
export function quantileNs(histogram, share) {
  let total = 0;
  for (const count of histogram.values()) total += count;
  if (total === 0) return null;
  let before = 0;
  for (const bucket of [...histogram.keys()].sort((a, b) => a - b)) {
    before += histogram.get(bucket);
    if (before >= share * total) return middleNs(bucket);
  }
  return null;
}

/** Adds one histogram to another. A histogram is a Map from a bucket to how many. */
function merge(into, from) {
  for (const [bucket, count] of from) into.set(bucket, (into.get(bucket) ?? 0) + count);
  return into;
}

/** One ssd's counts of one kind, as the agent sends them: cumulative. */
function counted(op) {
  const times = {};
  for (const part of PARTS) times[part] = new Map(op?.[part] ?? []);
  return { bytes: op?.bytes ?? 0, errors: op?.errors ?? 0, ios: op?.ios ?? 0, times };
}

function between(now, then) {
  const times = {};
  for (const part of PARTS) {
    times[part] = new Map();
    for (const [bucket, count] of now.times[part]) {
      const came = count - (then.times[part].get(bucket) ?? 0);
      if (came > 0) times[part].set(bucket, came);
    }
  }
  return { bytes: Math.max(0, now.bytes - then.bytes), ios: Math.max(0, now.ios - then.ios), times };
}

function nothing() {
  return { bytes: 0, ios: 0, times: Object.fromEntries(PARTS.map((part) => [part, new Map()])) };
}

function add(into, from) {
  into.bytes += from.bytes;
  into.ios += from.ios;
  for (const part of PARTS) merge(into.times[part], from.times[part]);
  return into;
}

/** One look, of the kinds that are asked for, as one. */
function chosenOf(look, op) {
  if (op !== "all") return look.ops[op];
  return OPS.reduce((sum, kind) => add(sum, look.ops[kind]), nothing());
}

export class Live {
  /** By ssd: what was counted last, and the looks since. */
  #known = new Map();
  #at = null;

  /** The moment of the last answer, s, by the agent's clock that only goes forward. */
  get at() {
    return this.#at;
  }

  /** Takes what the agent answered to `stats`. */
  take(answer) {
    if (answer.bucket_floors_ns.length > 0) floors = answer.bucket_floors_ns;
    const now = answer.clock_ms / 1000;
    // The same answer again; or another host, or this one started anew.
    if (now === this.#at) return;
    const from = this.#at !== null && this.#at < now ? this.#at : null;
    const sum = { from, to: now, ops: Object.fromEntries(OPS.map((op) => [op, nothing()])) };
    const known = new Map();
    const looksMax = Math.max(60, Math.min(LOOKS_MAX, Math.floor(LOOKS_TOTAL_MAX / (answer.ssds.length + 1))));
    for (const item of answer.ssds) {
      const last = Object.fromEntries(OPS.map((op) => [op, counted(item[op])]));
      const before = this.#known.get(item.name);
      // Counted anew: the daemon was started anew, or it is another ssd of that name.
      const anew = !before || from === null || before.serial !== item.serial || OPS.some((op) => last[op].ios < before.last[op].ios);
      const looks = before?.looks ?? [];
      if (!anew) {
        const look = { from, to: now, ops: {} };
        for (const op of OPS) {
          look.ops[op] = between(last[op], before.last[op]);
          add(sum.ops[op], look.ops[op]);
        }
        looks.push(look);
      }
      if (looks.length > looksMax) looks.splice(0, looks.length - looksMax);
      known.set(item.name, { last, looks, serial: item.serial });
    }
    const all = this.#known.get(ALL)?.looks ?? [];
    if (from !== null) all.push(sum);
    if (all.length > LOOKS_MAX) all.splice(0, all.length - LOOKS_MAX);
    known.set(ALL, { last: null, looks: all });
    this.#known = known;
    this.#at = now;
  }

  /** The looks of an ssd in the last seconds, oldest first: `{from, to, seconds, ios, bytes, times: {part: histogram}}`. */
  looks(ssd, op, seconds) {
    const looks = this.#known.get(ssd)?.looks ?? [];
    return looks.filter((look) => look.to > this.#at - seconds).map((look) => ({ from: look.from, to: look.to, ...chosenOf(look, op) }));
  }

  /** What an ssd did lately; null when nothing is known of it yet. */
  recent(ssd, op = "all") {
    const looks = (this.#known.get(ssd)?.looks ?? []).filter((look) => look.to > this.#at - RECENT_S);
    if (looks.length === 0) return null;
    const sum = looks.reduce((sum, look) => add(sum, chosenOf(look, op)), nothing());
    const seconds = looks.reduce((sum, look) => sum + look.to - look.from, 0);
    const quantiles = {};
    for (const part of PARTS) quantiles[part] = [0.5, 0.99, 0.999].map((share) => quantileNs(sum.times[part], share));
    return { iops: sum.ios / seconds, bandwidth: sum.bytes / seconds, quantiles };
  }

  /** I/Os a second of the last looks, oldest first. */
  trend(ssd, count) {
    const looks = this.#known.get(ssd)?.looks ?? [];
    return looks.slice(-count).map((look) => OPS.reduce((sum, op) => sum + look.ops[op].ios, 0) / (look.to - look.from));
  }

  errors(ssd) {
    const last = this.#known.get(ssd)?.last;
    return last ? OPS.reduce((sum, op) => sum + last[op].errors, 0) : 0;
  }
}
