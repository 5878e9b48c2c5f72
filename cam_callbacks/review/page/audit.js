// What is said of an audit: the verdict, the picture of swapped backgrounds, and what stands under the probes.

import { decoded, el } from './elements.js';
import { term } from './glossary.js';
import { classTable, dataTable, dependenceTable, measureTable, settingsTable } from './tables.js';
import { digits, interval, judged, markdown, moment, plural } from './words.js';

/** The verdict on a run at a look: in short, or whole. */
export function verdict(run, look, whole = false) {
  const { audit } = look;
  const blocks = audit ? markdown(audit.verdict.text) : [];
  const meaning = audit && term(UNJUDGED.includes(ofBackground(audit)) ? 'verdict' : audit.gap, 'What it means');
  const masks = `masks ${audit?.masks === 'none' ? 'absent' : audit?.masks}`;
  return el(
    'section',
    { class: `verdict ${audit?.verdict.state.replaceAll(' ', '-') ?? ''}`, 'aria-label': `Verdict on ${run.name}` },
    el('header',
      el('h2', { class: `key run-${run.side}` }, run.title),
      el('span.state', audit?.verdict.state ?? 'no audit'),
      el('span.facts', [moment(look), ...(audit ? [plural(audit.images, 'image'), masks] : [])].join(' · ')),
    ),
    el('div.found',
      el('div.words',
        audit && (whole ? [blocks, notes(audit)] : [blocks[0], el('p', gapInWords(audit), meaning)]),
        !audit && el('p', run.looks.some((each) => each.audit) ? 'No audit at this look.' : NO_AUDIT),
      ),
      audit && dependenceTable(audit),
    ),
  );
}

/** The state of the background alone; earlier versions judged nothing else. */
const ofBackground = (audit) => audit.verdict.background ?? audit.verdict.state;

const UNJUDGED = ['too few images', 'not learned', 'not testable'];

const NO_AUDIT =
  'This run has no audit: it needs images whose labels are understood and differ, and CAMMonitor(audit=Audit()), the default. ' +
  'The heatmaps below show where the network looks, not whether it is right for the wrong reasons.';

/** What was measured; nothing where it says nothing. */
function gapInWords(audit) {
  if (UNJUDGED.includes(ofBackground(audit))) return '';
  const gap = judged(audit, audit.gap);
  if (gap == null) return 'The gap could not be measured. ';
  const named = (label) => (label.startsWith(`${audit.words.one} `) ? label : `the ${audit.words.one} ${label}`);
  const filled = {
    place: audit.masks === 'none' ? 'edge' : 'background',
    hundredths: digits(100 * gap.value, 0),
    of: gap.label === null ? '' : ` of ${named(gap.label)}`,
    gap: `${digits(gap.value)} ${interval(gap)}`,
  };
  return `${audit.words.effect.replace(/\{(\w+)\}/g, (_, name) => filled[name])} `;
}

const notes = (audit) => (audit.notes ?? []).map((note) => el('p', note));

/** The picture of swapped backgrounds of a look. */
export function swaps(run, { step, audit }) {
  const node = el('div.swaps', '…');
  run.swaps(step).then(decoded).then(
    (picture) => {
      if (picture) picture.alt = audit.words.pasted;
      node.replaceChildren(picture ?? 'No picture of swapped backgrounds at this look.');
    },
    (error) => node.replaceChildren(error.message),
  );
  return node;
}

/** What stands under the probes of a run: [title, a function that makes the content]. */
export function appendix(run, look) {
  const { audit } = look;
  const { settings } = run.timeline;
  const ofAudit = [
    ['The whole verdict', () => el('div.words', markdown(audit.verdict.text), notes(audit))],
    [audit?.words.by, () => classTable(audit)],
    ['Swapped backgrounds', () => swaps(run, look)],
    ...(audit?.data?.length > 0 ? [['What the data gives away', () => dataTable(audit)]] : []),
    ['All numbers', () => measureTable(audit)],
  ];
  return [...(audit ? ofAudit : []), ...(settings ? [['Settings and versions', () => settingsTable(settings)]] : [])];
}
