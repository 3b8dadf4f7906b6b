/* Keys, live header and accessible names for the pages. Text from the server goes in as textContent only. */
(() => {
  "use strict";
  const KEYS = { 1: "vote-a", 2: "vote-b", 3: "vote-tie", 4: "vote-both_bad", " ": "vote-skip" };
  const SETTLE_MS = 400; // A second press meant for the pair that has just gone must not judge the next one.
  const IDLE_MS = 5000;
  const BUSY_MS = 1500;
  const SOON_MS = 500;
  const listeners = [];
  let lastVote = 0;
  let wasReady = true;

  const byId = (id) => document.getElementById(id);
  const isVisible = (element) => element && element.offsetParent !== null;
  const button = (id) => {
    const found = byId(id);
    return found && (found.matches("button") ? found : found.querySelector("button"));
  };

  function isTyping(target) {
    return target.isContentEditable || target.closest("input, textarea, select, [role=listbox], [role=dialog]");
  }

  function onKey(event) {
    if (event.repeat || isTyping(event.target)) return;
    if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "z") {
      press("undo", event);
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const id = KEYS[event.key];
    if (!id) return;
    // Who reached a control by Tab means that control by Space.
    if (event.key === " " && event.target.matches("button:focus-visible, a:focus-visible, summary")) return;
    if (byId(id)) event.preventDefault();
    const now = performance.now();
    if (now - lastVote < SETTLE_MS) return;
    if (press(id, event)) lastVote = now;
  }

  function press(id, event) {
    const found = button(id);
    if (!isVisible(found) || found.disabled) return false;
    event.preventDefault();
    found.click();
    return true;
  }

  // A focused vote button would take the next Space for itself; after a click the keys belong to the page.
  function onPointerUp(event) {
    const clicked = event.target.closest(".ds-votes button, #undo, #ask");
    if (clicked) setTimeout(() => clicked.blur(), 0);
  }

  function onSubmitKey(event) {
    const box = event.target;
    if (!box.matches || !box.matches("textarea") || event.key !== "Enter" || event.shiftKey) return;
    // Otherwise the keys that follow would be typed into the prompt and not vote.
    if (box.closest("#own-prompt, #compare-prompt")) setTimeout(() => box.blur(), 0);
  }

  const NAMES = {
    "pane-a": "Answer A", "pane-b": "Answer B", "label-prompt": "Prompt",
    "left-answer": "Left answer", "right-answer": "Right answer",
    "left-diff": "Left answer with differences", "right-diff": "Right answer with differences",
  };
  const SHORTCUTS = {
    "vote-a": "1", "vote-b": "2", "vote-tie": "3", "vote-both_bad": "4", "vote-skip": "Space", undo: "Control+Z",
  };

  // A pane with more below its edge fades there; without a sign the cut looks like the end of the answer.
  const PANES = ".ds-answer.block, .ds-prompt.block, .ds-diff.block";
  const EDGE_PX = 4;

  function markPane(pane) {
    pane.toggleAttribute("data-more", pane.scrollHeight - pane.scrollTop - pane.clientHeight > EDGE_PX);
  }

  function markPanes() {
    document.querySelectorAll(PANES).forEach(markPane);
  }

  function onScroll(event) {
    if (event.target.matches && event.target.matches(PANES)) markPane(event.target);
  }

  function decorate() {
    markPanes();
    for (const [id, name] of Object.entries(NAMES)) {
      const pane = byId(id);
      if (!pane || pane.getAttribute("role") === "region") continue;
      pane.setAttribute("role", "region");
      pane.setAttribute("aria-label", name);
      pane.tabIndex = 0;
    }
    for (const [id, keys] of Object.entries(SHORTCUTS)) {
      const found = button(id);
      if (found) found.setAttribute("aria-keyshortcuts", keys);
    }
    for (const notice of ["notice", "training-notice"].map(byId)) {
      if (!notice || notice.hasAttribute("aria-live")) continue;
      notice.setAttribute("role", "status");
      notice.setAttribute("aria-live", "polite");
    }
    for (const time of document.querySelectorAll("time[datetime]:not([data-local])")) {
      const moment = new Date(time.dateTime);
      time.textContent = moment.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
      time.dataset.local = "yes";
    }
  }

  function watchPage() {
    let isPlanned = false;
    new MutationObserver(() => {
      if (isPlanned) return;
      isPlanned = true;
      requestAnimationFrame(() => { isPlanned = false; decorate(); greet(); });
    }).observe(document.body, { childList: true, subtree: true });
    decorate();
  }

  let status = null;
  let greeted = "";

  // The first status may come before Gradio has drawn the page, or only a part of it.
  function greet() {
    const drawn = ["ds-live", "ds-training", "next-round"].filter(byId).join();
    if (!status || drawn === greeted) return;
    greeted = drawn;
    announce();
  }

  function announce() {
    if (!byId("ds-live")) return;
    showStatus();
    onReadiness();
    listeners.forEach((listener) => listener(status));
  }

  function showStatus() {
    const live = byId("ds-live");
    setText(live, status.live);
    live.hidden = false;
    showRound(status.round);
    showEngine(status.engine);
  }

  function showRound(round) {
    const slot = byId("ds-round");
    slot.hidden = !round;
    if (!round) return;
    const progress = round.progress && round.progress.num_steps ? round.progress : null;
    const share = progress ? ` ${Math.floor((100 * progress.step) / progress.num_steps)} %` : "";
    const doing = round.cancelling ? "Cancelling …" : `Training${share}`;
    setText(slot, round.status === "waiting" ? `Round ${round.round} waits` : doing);
  }

  function showEngine(engine) {
    const slot = byId("ds-engine");
    const isReady = engine.state === "ready";
    slot.hidden = isReady;
    if (isReady) return;
    const words = { failed: "The model could not be started", restarting: "The model is restarting" };
    setText(byId("ds-engine-text"), engine.detail || words[engine.state] || "The model is loading");
    const bar = byId("ds-engine-progress");
    bar.hidden = engine.state === "failed";
    if (engine.progress) bar.value = engine.progress;
    else bar.removeAttribute("value");
  }

  function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  // The label page asks again by itself once the model can answer.
  function onReadiness() {
    const isReady = status.engine.state === "ready";
    const fetchButton = button("fetch");
    if (isReady && !wasReady && isVisible(fetchButton)) fetchButton.click();
    wasReady = isReady;
  }

  let timer = 0;

  async function poll() {
    clearTimeout(timer);
    if (!document.hidden) {
      try {
        const answer = await fetch("./api/status", { headers: { Accept: "application/json" } });
        if (answer.ok) {
          status = await answer.json();
          announce();
        }
      } catch (error) { /* The server is restarting; the next round asks again. */ }
    }
    const isBusy = status && (status.engine.state !== "ready" || (status.round && status.round.status !== "waiting"));
    clearTimeout(timer);
    timer = setTimeout(poll, isBusy ? BUSY_MS : IDLE_MS);
  }

  // What was pressed on the rounds page shows in the header and the curve without waiting for the next turn.
  function onClick(event) {
    if (!event.target.closest("#page-rounds button") || event.target.closest("#rounds-refresh")) return;
    clearTimeout(timer);
    timer = setTimeout(poll, SOON_MS);
  }

  window.dpoStudio = {
    onStatus(listener) { listeners.push(listener); },
    showDifferences(on) { document.body.classList.toggle("ds-show-diff", Boolean(on)); },
    button,
  };
  document.addEventListener("keydown", onKey);
  document.addEventListener("keydown", onSubmitKey);
  document.addEventListener("pointerup", onPointerUp);
  document.addEventListener("click", onClick);
  document.addEventListener("scroll", onScroll, { capture: true, passive: true });
  window.addEventListener("resize", markPanes);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) decorate(); });
  const begin = () => { watchPage(); poll(); };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
