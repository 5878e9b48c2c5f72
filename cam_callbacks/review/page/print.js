// All runs of a source on paper.

import { appendix, verdict } from './audit.js';
import { curveOf, curvesOf } from './curves.js';
import { el } from './elements.js';
import { Glossary } from './glossary.js';
import { ProbePicture, Scale } from './picture.js';
import { Run } from './run.js';
import { skippedFiles } from './skipped.js';
import { mainNumber, moment, truth } from './words.js';

const TILES_PRINTED = 24;
const COLORS_PRINTED = 'inferno';

/** All runs of a source, made to be printed: nothing to click, all open. */
export async function printed(source) {
  const runs = [];
  for (const { run: name, monitors } of await source.runs()) {
    for (const monitor of monitors) {
      const run = new Run(source, name, monitor);
      await run.read();
      if (run.looks.length > 0) runs.push(await printedRun(run, monitors.length > 1));
    }
  }
  const glossary = new Glossary();
  await glossary.read(source);
  opened([glossary.node]);
  return el('div.print', el('h1', 'CAM report'), opened(skippedFiles(source)), runs, glossary.node);
}

function opened(details) {
  for (const each of details) each.open = true;
  return details;
}

async function printedRun(run, manyMonitors) {
  const last = run.looks.at(-1);
  const latest = [...run.looks].reverse().find((look) => look.audit) ?? last;
  const curves = curvesOf([run]).map((curve) => [
    el('h3', curve.title, el('small', ` ${curve.about}`)),
    curveOf(curve, [run], run.steps),
  ]);
  return el('article',
    el('h2.title', manyMonitors ? `${run.name}, ${run.monitor}` : run.name),
    verdict(run, latest, true),
    curves,
    el('h3', 'Heatmaps'),
    await printedProbes(run),
    appendix(run, latest).slice(latest.audit ? 1 : 0).map(([title, make]) => [el('h3', title), make()]),
  );
}

/** Each probe at the first, middle and last look with heatmaps; without any, why there are none. */
async function printedProbes(run) {
  const steps = run.looks.filter(({ heatmaps }) => heatmaps).map(({ step }) => step);
  if (steps.length === 0) return el('p', (await run.look(run.steps.at(-1))).no_heatmaps);
  const places = [...new Set([0, Math.floor((steps.length - 1) / 2), steps.length - 1])];
  const looks = await Promise.all(places.map((place) => run.look(steps[place])));
  const shown = looks.at(-1).probes.slice(0, TILES_PRINTED);
  const cells = shown.map((_, index) =>
    el('figure',
      looks.map((look) => printedTile(look, index)),
      el('figcaption', `true: ${truth(looks.at(-1), shown[index])}`),
    ),
  );
  const total = looks.at(-1).probes.length;
  const words = `${looks.map(moment).join(', ')}; below each the ${mainNumber(looks.at(-1), shown[0])[0]}.`;
  const part = total > shown.length ? ` The first ${shown.length} of ${total} probes.` : '';
  const scale = new Scale();
  scale.show(COLORS_PRINTED);
  return [el('p', words + part), scale.node, el('div.printed-probes', cells)];
}

function printedTile(look, index) {
  const picture = new ProbePicture(look.photos[index], 120);
  const probe = look.probes[index];
  if (!probe) return el('span.tile', picture.node, el('small', '–'));
  picture.show(look, index, COLORS_PRINTED);
  const [, number, shown] = mainNumber(look, probe);
  return el('span.tile', picture.node, el('small', shown(number)));
}
