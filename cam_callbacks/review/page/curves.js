// Curves of the audit over the looks.

import { el, svg } from './elements.js';
import { judged, overall, short } from './words.js';

/**
 * A chart whose places along the x axis are looks, each line with its band, chance level and points.
 *
 * Lines are stretched with their box; strokes and points, drawn as strokes of no length, are not.
 *
 * @param lines [{name: the side of its run, points: [{x, value, low, high, chance, state}]}], x counted in looks
 * @param count how many looks there are
 * @param threshold a level to mark, or null
 */
function chart(lines, count, threshold) {
  const points = lines.flatMap((line) => line.points);
  const levels = points.flatMap((point) => [point.value, point.low, point.high, point.chance]);
  const shown = levels.filter((level) => level != null);
  const low = Math.min(0, ...shown);
  const high = Math.max(0.1, threshold ?? 0, ...shown);
  const ticks = ticksBetween(low, high);
  const x = (at) => ((1000 * at) / Math.max(1, count - 1)).toFixed(1);
  const y = (level) => (100 * (1 - (level - low) / (high - low))).toFixed(1);
  const path = (places) => `M${places.map(([at, level]) => `${x(at)} ${y(level)}`).join('L')}`;
  const line = (name, places) => places.length > 0 && svg('path', { class: name, d: path(places) });
  const along = (name, level) => svg('path', { class: name, d: `M0 ${y(level)}H1000` });

  const drawn = lines.flatMap(({ name, points: all }) => {
    const bounded = all.filter((point) => point.low != null && point.high != null);
    const upper = bounded.map((point) => [point.x, point.high]);
    const lower = bounded.map((point) => [point.x, point.low]).reverse();
    const chances = all.filter((point) => point.chance).map((point) => [point.x, point.chance]);
    return [
      line(`band run-${name}`, [...upper, ...lower]),
      line(`chance run-${name}`, chances),
      line(`curve run-${name}`, all.map((point) => [point.x, point.value])),
      all.map((point) =>
        svg('path', {
          class: point.state === 'alarm' ? 'point alarm' : `point run-${name}`,
          d: `M${x(point.x)} ${y(point.value)}h.01`,
        }),
      ),
    ];
  });
  const labels = ticks.map((tick) => {
    const label = el('span.tick', short(tick));
    label.style.top = `${y(tick)}%`;
    return label;
  });
  return el('div.plot',
    labels,
    svg(
      'svg',
      { viewBox: '0 0 1000 100', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      ticks.map((tick) => along('grid', tick)),
      threshold != null && along('threshold', threshold),
      drawn,
    ),
  );
}

/** Round levels, at most five, between two values. */
function ticksBetween(low, high) {
  const size = [0.05, 0.1, 0.2, 0.25, 0.5, 1].find((each) => (high - low) / each < 4) ?? high - low;
  const first = Math.ceil(low / size - 1e-9);
  const count = Math.floor(high / size + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, index) => (first + index) * size);
}

/** The curves of the audit: a measure of it over the looks. */
const CURVES = [
  {
    title: 'Gap of the audit',
    about: (audit) => `${audit.words.lost}; band: 95%; dashed: the level to exceed`,
    term: 'bg_gap',
    measure: (audit) => audit?.gap,
    estimate: judged,
    threshold: (audit) => audit.threshold,
    state: (audit) => audit.verdict.state,
    missing: 'not measured',
  },
  {
    title: 'Heat on object',
    about: () => 'share of the heat that lies on the object; dotted: by chance',
    term: 'heat_on_object',
    measure: () => 'heat_on_object',
    estimate: overall,
    missing: 'not measured: no masks',
    isShown: ({ heatmaps, audit }) => (heatmaps && audit?.masks === 'none') || overall(audit, 'heat_on_object')?.value != null,
  },
];

/** The curves that some runs have, each with `about` in the words of their audits; none without an audit. */
export function curvesOf(runs) {
  const looks = runs.flatMap((run) => run.looks);
  const { audit } = looks.find((look) => look.audit) ?? {};
  const shown = CURVES.filter(({ isShown = () => true }) => audit && looks.some(isShown));
  return shown.map((curve) => ({ ...curve, about: curve.about(audit) }));
}

/** The chart of a curve for some runs over the steps of all of them. */
export function curveOf(curve, runs, steps) {
  const lines = runs.map((run) => {
    const points = run.looks.map(({ step, audit }) => {
      const estimate = curve.estimate(audit, curve.measure(audit));
      return estimate && { ...estimate, x: steps.indexOf(step), state: curve.state?.(audit) };
    });
    return { name: run.side, points: points.filter((point) => point?.value != null) };
  });
  const { audit } = runs.flatMap((run) => run.looks).find((look) => look.audit) ?? {};
  return chart(lines, steps.length, (audit && curve.threshold?.(audit)) ?? null);
}
