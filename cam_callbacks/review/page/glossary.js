// What the numbers mean.

import { el } from './elements.js';

/** [name, definition, chance level] */
const TERMS = [
  [
    'verdict',
    'What was found. Suspicion: the lower end of a class’s gap is above the threshold at this look. Alarm: at two ' +
      'looks in a row. Warning: the same without masks, a weak test. No alarm: nothing was found; this does not ' +
      'mean that there is no bias. Too few images: fewer than 30 could be tested, nothing is judged. Not learned: the ' +
      'accuracy is not yet clearly above that of always answering the most frequent class, nothing is judged.',
    '',
  ],
  ['interval', 'In square brackets: 95 % bootstrap interval over images. With few images [0, 0] is no certainty.', ''],
  [
    'accuracy',
    'Share of right answers. Cannot show a bias that the validation images share.',
    'share of the largest class',
  ],
  [
    'bg_gap',
    'Accuracy before a background of the same class − accuracy before one of another class. The main number: 0.3 ' +
      'means that 30 of 100 answers depend on the background.',
    '0',
  ],
  [
    'recolor_gap',
    'The same, but only mean and spread of the background’s color are moved. As large as bg_gap: the color is ' +
      'used; near 0: content or texture.',
    '0',
  ],
  [
    'ring_gap',
    'The same, the outer ring (1/8 of the side) exchanged. Only where there are no masks; matters above 0.15.',
    '0',
  ],
  [
    'background_only',
    'Accuracy with the object filled with the mean color of the background. High: the background alone is ' +
      'enough.',
    'share of the largest class',
  ],
  [
    'object_only',
    'Accuracy with the background filled with the mean color of all images. High: the object alone is enough.',
    'share of the largest class',
  ],
  [
    'color_sensitivity_roll',
    'Right answers lost by rolled color channels − those lost by a little brightness. Clean models use color ' +
      'too: no alarm.',
    '0',
  ],
  ['color_sensitivity_gray', 'The same with gray images.', '0'],
  ['delete_hot', 'Accuracy with the hottest half of the heatmap filled. Stays high: evidence is elsewhere too.', ''],
  ['border_share', 'Heat in the outer ring / all heat.', 'area of the ring'],
  [
    'heat_on_object',
    'Heat on the object’s mask / all heat. Above chance: heat follows the object. Evidence, not proof: a biased ' +
      'model may pass.',
    'the same on the masks of other images of the class',
  ],
  ['heat_over_area', 'heat_on_object − the object’s share of the area. Below 0: off the object.', '0'],
  ['rank_accuracy', 'Of as many hottest positions as the mask has, the share on the mask.', 'area of the mask'],
  ['pointing', 'How often the hottest position lies on the mask.', 'area of the mask'],
  [
    'data_color_auc',
    'How well the mean color outside the object tells the classes apart (AUC). Of the data, not of the model. ' +
      'From 0.85: ask how the data was collected.',
    '0.5',
  ],
  ['worst_group_accuracy', 'Smallest accuracy of a group of images.', '0, where each group is of one class'],
  [
    '..._probability',
    'The gap in the probability of the true class instead of accuracy. Varies less; not judged.',
    '0',
  ],
  [
    'average_drop',
    'How much of the explained class’s probability is lost if only the hottest half of the image is kept. Low: the ' +
      'map holds the evidence.',
    '',
  ],
  ['increase_in_confidence', 'Share of images whose probability rises if only the hottest half of the image is kept.', ''],
  [
    'mean_activation_correlation',
    'Correlation of the heatmap with the plain mean of the layer’s channels. Near 1: it says little of the class.',
    '',
  ],
  [
    'heatmap',
    'Bright: parts whose features bring the explained class’s score up, each map scaled to its own range. Largest ' +
      'activation is its height before that.',
    '',
  ],
  ['error', '1 − correlation of the heatmap with the exact one, estimated; 0 where it is exact.', ''],
];

export function glossary() {
  const rows = TERMS.map(([name, definition, chance]) =>
    el('div', { 'data-term': name },
      el('dt', name),
      el('dd', definition, chance && el('small', ` By chance: ${chance}.`)),
    ),
  );
  return el('details.glossary', el('summary', 'What the numbers mean'), el('dl', rows));
}

/** A button that leads to what a number means. */
export function term(name, text = name) {
  return el('button.term', { type: 'button', title: 'What this number means', onclick: () => explain(name) }, text);
}

function explain(measure) {
  const name = measure.endsWith('_probability') ? '..._probability' : measure;
  const glossary = document.querySelector('.screen .glossary');
  const entry = glossary.querySelector(`[data-term="${CSS.escape(name)}"]`);
  glossary.open = true;
  glossary.querySelectorAll('.marked').forEach((node) => node.classList.remove('marked'));
  entry?.classList.add('marked');
  (entry ?? glossary).scrollIntoView({ block: entry ? 'center' : 'start', behavior: 'smooth' });
  glossary.querySelector('summary').focus({ preventScroll: true });
}
