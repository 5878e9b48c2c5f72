// From data to words: numbers, names, the Markdown of verdicts.

import { el } from './elements.js';

export const digits = (value, count = 2) => (value == null ? '–' : value.toFixed(count).replace(/^-(?=[0.]+$)/, ''));
export const short = (value) => (value == null ? '–' : Number(value.toPrecision(3)).toString());
export const interval = (estimate) => `[${digits(estimate.low)}, ${digits(estimate.high)}]`;
export const plural = (count, one) => `${count} ${one}${count === 1 ? '' : 's'}`;
export const moment = (look) => (look.epoch == null ? `step ${look.step}` : `epoch ${look.epoch} · step ${look.step}`);
export const className = (look, index) => (index == null ? 'no label' : (look.class_names?.[index] ?? String(index)));
/** What is true of a probe: its class, or its classes or numbers in words. */
export const truth = (look, { label, truth: words }) => (label == null && words != null ? words : className(look, label));
/** The number that stands for a probe, and its name. */
export const mainNumber = (look, probe) =>
  [
    ['probability of the true class', probe.probability_label, digits],
    ['probability of the likeliest class', probe.probability_predicted, digits],
    [look.score === 'predicted' ? 'number that is predicted' : look.score || 'score', probe.score, short],
  ].find(([, value]) => value != null) ?? ['probability', null, digits];
export const isMistake = ({ label, predicted }) => label != null && predicted != null && label !== predicted;
export const overall = (audit, measure) => audit?.measures?.[measure]?.overall ?? null;

/**
 * The estimate that the verdict is about, with its `label`: the largest of the classes that it names, else that of all
 * images, whose label is null.
 */
export function judged(audit, measure) {
  const { overall: all, per_class: of = {} } = audit?.measures?.[measure] ?? {};
  const classes = Object.entries(of).map(([label, estimate]) => ({ ...estimate, label }));
  const known = [{ ...all, label: null }, ...classes].filter(({ value }) => value != null);
  const named = known.filter(({ label }) => (label === null ? audit.verdict.overall : audit.verdict.classes.includes(label)));
  const candidates = named.length > 0 ? named : known.filter(({ label }) => label === null);
  return candidates.reduce((best, each) => (best && (each.low ?? -1) <= (best.low ?? -1) ? best : each), null);
}

/** The Markdown that verdicts are written in: paragraphs, lists, bold, emphasis, code. */
export function markdown(text) {
  return text.split(/\n{2,}/).map((block) => {
    const lines = block.split('\n');
    const items = lines.filter((line) => line.startsWith('- ')).map((line) => el('li', inline(line.slice(2))));
    const words = lines.filter((line) => !line.startsWith('- ')).join(' ');
    return el('div', words && el('p', inline(words)), items.length > 0 && el('ul', items));
  });
}

function inline(text) {
  return text.split(/(\*\*[^*]+\*\*|\*[^*\s][^*]*\*|`[^`]+`)/).map((part) => {
    if (part.startsWith('**') && part.length > 4) return el('strong', part.slice(2, -2));
    if (part.startsWith('`') && part.length > 2) return el('code', part.slice(1, -1));
    if (part.startsWith('*') && part.length > 2) return el('em', part.slice(1, -1));
    return part;
  });
}
