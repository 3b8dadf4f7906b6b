/* The live curve of the rounds page, drawn from GET /api/rounds/{n}/steps. All text is textContent. */
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 320;
  const HEIGHT = 120;
  const PAD = 8;
  const GUTTER = 42;
  const PHASES = {
    loading: "Loading the model", reference: "Scoring with the reference",
    training: "Training", evaluating: "Measuring on held-out pairs", done: "Checking the result",
  };
  const CHARTS = [
    { key: "loss", title: "Loss", low: 0, high: null,
      format: (value) => value.toFixed(3), tick: (value) => value.toFixed(2) },
    {
      key: "rewards/accuracies", title: "Training pairs ranked right", low: 0, high: 1,
      format: (value) => `${Math.round(100 * value)} %`, tick: (value) => `${Math.round(100 * value)} %`,
    },
  ];
  const ENDED = {
    waiting: "waits for your decision", promoted: "was promoted", rejected: "was not promoted",
    failed: "failed", cancelled: "was cancelled", interrupted: "was interrupted",
  };
  let shown = null; // { round, steps }
  let isAsking = false;

  const byId = (id) => document.getElementById(id);

  function onStatus(status) {
    if (!byId("ds-training")) return;
    const round = status.round;
    refreshWhenStale(status);
    if (round) follow(round);
    else if (shown === null) followNewest();
    else if (shown.isActive) finish();
  }

  // The server drew the page from a state and wrote down which; when that has passed it draws again.
  function refreshWhenStale(status) {
    const drawn = document.querySelector("#next-round [data-key]");
    const round = status.round;
    let current = "none";
    if (round) {
      current = `${round.round}-${round.status}${round.cancelling ? "-cancelling" : ""}`;
      if (!(round.status in ENDED)) current += `-${round.reason}`;
    }
    if (drawn && drawn.dataset.key !== `${status.live}/${current}/${status.new_pairs}`) {
      window.dpoStudio.button("rounds-refresh").click();
    }
  }

  async function followNewest() {
    const answer = await ask("./api/rounds");
    if (answer && answer.rounds.length) follow(answer.rounds[0]);
    else say("No round has run yet.", 0);
  }

  async function finish() {
    const answer = await ask(`./api/rounds/${shown.round}`);
    if (answer) follow(answer);
  }

  async function follow(round) {
    if (isAsking) return;
    isAsking = true;
    try {
      if (!shown || shown.round !== round.round) shown = { round: round.round, steps: [], isActive: true };
      const since = shown.steps.length ? shown.steps[shown.steps.length - 1].step : 0;
      const answer = await ask(`./api/rounds/${round.round}/steps?since=${since}`);
      if (!answer) return;
      shown.steps.push(...answer.steps.filter((step) => step.phase === "training"));
      shown.isActive = !(answer.status in ENDED);
      describe(answer);
      draw(shown.steps);
    } finally {
      isAsking = false;
    }
  }

  function describe(answer) {
    const progress = answer.progress;
    byId("ds-training").classList.toggle("ds-active", shown.isActive);
    if (!shown.isActive) return say(`Round ${answer.round} ${ENDED[answer.status]}.`, 1);
    if (answer.cancelling) return say(`Round ${answer.round}: cancelling …`, byId("ds-phase-bar").value);
    const next = shown.steps.length ? "go on" : "start";
    if (answer.status === "queued" || !progress) return say(`Round ${answer.round} is about to ${next}.`, 0);
    const steps = progress.num_steps ? `, ${progress.step} of ${progress.num_steps}` : "";
    const share = progress.num_steps ? progress.step / progress.num_steps : 0;
    say(`Round ${answer.round}: ${PHASES[progress.phase] || progress.phase}${steps}`, share);
  }

  function say(sentence, share) {
    byId("ds-phase").textContent = sentence;
    byId("ds-phase-bar").value = share;
  }

  function draw(steps) {
    const home = byId("ds-curves");
    const charts = CHARTS.map((chart) => figure(chart, points(chart, steps))).filter(Boolean);
    home.replaceChildren(...charts);
  }

  function points(chart, steps) {
    return steps
      .map((step) => ({ x: step.step, y: step.metrics[chart.key] }))
      .filter((point) => typeof point.y === "number");
  }

  function figure(chart, series) {
    if (!series.length) return null;
    const last = series[series.length - 1];
    const frame = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const value = document.createElement("strong");
    caption.textContent = `${chart.title} `;
    value.textContent = chart.format(last.y);
    caption.append(value);
    frame.append(curve(chart, series, `${chart.title}: ${chart.format(last.y)} at step ${last.x}`), caption);
    return frame;
  }

  function curve(chart, series, name) {
    const high = chart.high === null ? Math.max(...series.map((point) => point.y)) * 1.05 || 1 : chart.high;
    const first = series[0].x;
    const span = Math.max(1, series[series.length - 1].x - first);
    const x = (point) => GUTTER + ((WIDTH - GUTTER - PAD) * (point.x - first)) / span;
    const y = (value) => HEIGHT - PAD - ((HEIGHT - 2 * PAD) * (value - chart.low)) / (high - chart.low);
    const svg = node("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": name });
    for (const share of [0, 0.5, 1]) {
      const level = y(chart.low + share * (high - chart.low));
      svg.append(node("line", { x1: GUTTER, x2: WIDTH - PAD, y1: level, y2: level, class: "ds-grid" }));
      svg.append(label(chart.tick(chart.low + share * (high - chart.low)), level + 3.5));
    }
    const path = series.map((point) => `${x(point).toFixed(1)},${y(point.y).toFixed(1)}`).join(" ");
    svg.append(node("polyline", { points: path, class: "ds-line" }));
    const last = series[series.length - 1];
    svg.append(node("circle", { cx: x(last), cy: y(last.y), r: 3.5, class: "ds-dot" }));
    return svg;
  }

  function label(words, y) {
    const made = node("text", { x: GUTTER - 6, y, "text-anchor": "end" });
    made.textContent = words;
    return made;
  }

  function node(name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  async function ask(url) {
    try {
      const answer = await fetch(url, { headers: { Accept: "application/json" } });
      return answer.ok ? await answer.json() : null;
    } catch (error) {
      return null; // The server is restarting; the next status asks again.
    }
  }

  window.dpoStudio.onStatus(onStatus);
})();
