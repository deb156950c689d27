// The labelling room's script. Everything works without it; with it an answer is sent without
// leaving the page, keys answer, time is measured, and a bad connection loses nothing.
"use strict";
(() => {
  document.documentElement.classList.add("script");
  if (!document.getElementById("room")) return;

  const PENDING = "prefopt-pending"; // in the tab's own storage: an answer on its way
  const OPEN = "prefopt-keep-open";
  const WRITTEN = "prefopt-as-written";
  const TIMEOUT = 20000;
  const AGAIN = [502, 503, 504];
  const NAMES = { 1: "left", 2: "right", 3: "tie", 4: "both_bad", s: "skip" };
  let busy = false;
  let wake = null; // ends the pause before an answer is sent again
  let chosen = null;
  let seen = 0; // milliseconds that this question was visible, up to `since`
  let since = null;
  let fading = 0;

  const $ = (id) => document.getElementById(id);

  function say(words) {
    clearTimeout(fading);
    $("trouble").textContent = "";
    $("status").textContent = words;
    fading = setTimeout(() => { $("status").textContent = ""; }, 2000);
  }
  function complain(words) {
    $("status").textContent = "";
    $("trouble").textContent = words;
  }

  // -- storage that may be forbidden ------------------------------------------------------
  function recall(where, name) {
    try { return where().getItem(name); } catch { return null; }
  }
  function keep(where, name, value) {
    try {
      if (value === null) where().removeItem(name);
      else where().setItem(name, value);
    } catch { /* private windows: nothing is kept, everything else works */ }
  }
  const local = () => window.localStorage;
  const session = () => window.sessionStorage;

  // -- time ---------------------------------------------------------------------------------
  function elapsed() {
    return seen + (since === null ? 0 : performance.now() - since);
  }
  function watch() {
    if (document.visibilityState === "visible") since ??= performance.now();
    else {
      seen = elapsed();
      since = null;
    }
  }
  function restart() {
    seen = 0;
    since = null;
    watch();
  }

  // -- one question after the other ---------------------------------------------------------
  function arrive() {
    chosen = null;
    restart();
    const written = $("as-written");
    if (written) written.checked = recall(local, WRITTEN) === "1";
    const open = $("keep-open");
    if (open && recall(local, OPEN) === "1") {
      open.checked = true;
      open.closest("details").open = true;
    }
  }

  function swap(text) {
    const next = new DOMParser().parseFromString(text, "text/html");
    const room = next.getElementById("room");
    const script = (page) => page.querySelector("script")?.getAttribute("src");
    if (!room || script(next) !== script(document)) return false;
    $("room").replaceWith(document.adoptNode(room));
    document.title = next.title;
    arrive();
    window.scrollTo(0, 0);
    $("question")?.focus({ preventScroll: true });
    return true;
  }

  const pause = (milliseconds) => new Promise((resolve) => {
    setTimeout(resolve, milliseconds);
    wake = resolve;
  });

  // The same key every time: however often it arrives, it counts once.
  async function deliver(packet) {
    for (let attempt = 0; ; attempt += 1) {
      let why = "no connection to the server";
      try {
        const reply = await fetch(packet.address, {
          method: "POST",
          body: new URLSearchParams(packet.fields),
          headers: { Accept: "text/html" },
          credentials: "same-origin",
          signal: AbortSignal.timeout(TIMEOUT),
        });
        const text = await reply.text();
        if (!AGAIN.includes(reply.status)) return { reply, text };
        why = "the server is busy";
      } catch { /* the network, or too slow */ }
      complain(`Not saved yet: ${why}. Your answer is kept here and sent again…`);
      await pause(Math.min(15000, 500 * 2 ** attempt));
    }
  }

  async function send(packet, done) {
    if (busy) {
      wake?.(); // whoever presses again would not wait
      return;
    }
    busy = true;
    document.body.classList.add("sending");
    keep(session, PENDING, JSON.stringify(packet));
    try {
      const { reply, text } = await deliver(packet);
      if (reply.status !== 401) keep(session, PENDING, null);
      await settle(reply, text, done);
    } finally {
      busy = false;
      wake = null;
      document.body.classList.remove("sending");
    }
  }

  async function settle(reply, text, done) {
    if (reply.ok) {
      if (swap(text)) say(done);
      else location.reload();
      return;
    }
    const page = new DOMParser().parseFromString(text, "text/html");
    const words = page.querySelector("#problem p")?.textContent.trim().replace(/\s+/g, " ");
    if (reply.status === 422 && page.getElementById("room")) {
      swap(text);
      return;
    }
    if (reply.status === 409) {
      try {
        const fresh = await fetch(location.href, { credentials: "same-origin" });
        if (fresh.ok && swap(await fresh.text())) {
          complain(`Not counted: ${words ?? "somebody else was given that question"}`);
          return;
        }
      } catch { /* said below */ }
    }
    if (reply.status === 401) {
      complain("Not saved yet: you are signed out. Open a new link in another tab, then reload "
        + "this page: your answer is kept here and will be sent.");
      return;
    }
    complain(`Not saved: ${words ?? `the server answered ${reply.status}`}`);
  }

  function fieldsOf(form) {
    return Object.fromEntries(new FormData(form));
  }

  function answer(choice) {
    const form = $("answer");
    if (!form) return;
    const fields = { ...fieldsOf(form), choice, seconds: (elapsed() / 1000).toFixed(2) };
    if (choice !== "left" && choice !== "right") delete fields.strength;
    send({ address: form.action, fields, task: $("room").dataset.task },
      choice === "skip" ? "Skipped" : "Saved");
  }

  function undo() {
    const form = $("undo");
    if (!form || document.querySelector("button.undo")?.disabled) return;
    send({ address: form.action, fields: fieldsOf(form), task: $("room").dataset.task },
      "Taken back");
  }

  // With details open a key only marks a choice; Enter or the button sends it.
  function choose(choice) {
    if (busy || choice === "skip" || !document.querySelector(".say")?.open) {
      answer(choice);
      return;
    }
    chosen = choice;
    for (const button of document.querySelectorAll('.buttons [name="choice"]')) {
      button.setAttribute("aria-pressed", String(button.value === choice));
    }
    for (const side of ["left", "right"]) $(side).classList.toggle("chosen", side === choice);
    const named = document.querySelector(`.buttons [value="${choice}"]`);
    $("send").parentElement.hidden = false;
    $("chosen").textContent = `You chose: ${named.firstChild.textContent.trim()}`;
    $("answer").querySelectorAll('[name="strength"]').forEach((radio) => {
      radio.disabled = choice !== "left" && choice !== "right";
    });
  }

  // -- events -------------------------------------------------------------------------------
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.id === "answer") {
      event.preventDefault();
      if (event.submitter?.value) answer(event.submitter.value);
    } else if (form.id === "undo") {
      event.preventDefault();
      undo();
    } else if (form.id === "to-guidelines") {
      event.preventDefault();
      $("guidelines").showModal();
    }
  });

  document.addEventListener("click", (event) => {
    if (event.target.closest("#send") && chosen) answer(chosen);
    if (event.target === $("guidelines")) $("guidelines").close(); // beside the panel
  });

  document.addEventListener("change", (event) => {
    if (event.target.id === "as-written") keep(local, WRITTEN, event.target.checked ? "1" : null);
    if (event.target.id === "keep-open") keep(local, OPEN, event.target.checked ? "1" : null);
  });

  const typing = (element) => element.closest(
    'textarea, select, [contenteditable], input:not([type="radio"], [type="checkbox"])');

  function enter(event) {
    const where = event.target;
    const ours = where.closest("textarea") ? event.ctrlKey || event.metaKey
      : !where.closest("a, button, summary, select");
    if (!chosen || !ours) return;
    event.preventDefault();
    answer(chosen);
  }

  const keyOf = (event) => (/^[a-z0-9]$/i.test(event.key) ? event.key
    : event.code.replace(/^(Key|Digit|Numpad)/, "")).toLowerCase();

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || event.repeat) return;
    if ($("guidelines")?.open) return;
    if (event.key === "Enter") {
      enter(event);
      return;
    }
    if (event.ctrlKey || event.altKey || event.metaKey || typing(event.target)) return;
    const key = keyOf(event);
    const actions = {
      u: undo,
      g: () => $("guidelines")?.showModal(),
      w: () => $("as-written")?.click(),
      d: () => document.querySelector(".say > summary")?.click(),
    };
    const action = NAMES[key] && $("answer") ? () => choose(NAMES[key]) : actions[key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  document.addEventListener("visibilitychange", watch);
  window.addEventListener("online", () => wake?.());
  window.addEventListener("beforeunload", (event) => { if (busy) event.preventDefault(); });

  // -- begin --------------------------------------------------------------------------------
  arrive();
  const left = JSON.parse(recall(session, PENDING) ?? "null");
  if (left && left.task === $("room").dataset.task) {
    const csrf = document.querySelector('[name="csrf"]').value; // of the session there is now
    say("Sending the answer that was on its way…");
    send({ ...left, fields: { ...left.fields, csrf } }, "Saved");
  }
})();
