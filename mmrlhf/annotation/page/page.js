"use strict";
// What the server sends is put in as text, never as HTML. A change is saved at once; what is not acknowledged yet also lies
// in localStorage, and is sent again until it is.

const $ = (id) => document.getElementById(id);
const UNSAVED = "mmrlhf-unsaved", NAME = "mmrlhf-annotator";
let settings, me = "", query = null, form = null, mark = { answer: 0, field: 0 };
let undos = [], pending = null, sending = false, busy = false, begun = 0, spent = 0;

async function ask(path, body) {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const content = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(content.error.message), { refused: answer.status < 500 });
  return content;
}

function make(tag, { text, ...more } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), more);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

// ---- showing a query

function medium({ url, video }) {
  const shown = video ? make("video", { src: url, controls: true, loop: true, muted: true, autoplay: true }) : make("img", { src: url, alt: "" });
  const isSmall = () => Math.max(shown.naturalWidth || shown.videoWidth || 0, shown.naturalHeight || 0) <= 160;
  shown.addEventListener(video ? "loadedmetadata" : "load", () => shown.classList.toggle("small", isSmall()));
  shown.addEventListener("error", () => shown.replaceWith(make("p", { className: "note", text: "this picture or clip cannot be shown" })));
  return shown;
}

function showQuestion() {
  const several = query.turns.length > 1;
  $("question").replaceChildren(...query.turns.flatMap((turn) => [
    ...(several ? [make("p", { className: "role", text: turn.role })] : []),
    ...turn.parts.map((part) => part.text === undefined ? medium(part) : make("p", { className: "words", text: part.text })),
  ]));
}

function values(answer, field, most) {
  const buttons = [];
  for (let value = 1; value <= most; value++) {
    const button = make("button", { type: "button", text: String(value), tabIndex: -1 });
    Object.assign(button.dataset, { answer, field, value });
    button.addEventListener("click", () => { mark = { answer, field }; set(value); });
    buttons.push(button);
  }
  return make("span", { className: "values" }, ...buttons);
}

function answerCard(answer, number) {
  const card = make("article", { className: "answer" });
  card.append(make("div", { className: "letter", text: `Answer ${answer.letter}` }), ...answer.media.map(medium), make("p", { className: "words", text: answer.text }));
  settings.dimensions.forEach((name, field) => {
    const reason = make("input", { className: "reason", maxLength: 4000, placeholder: "reason", tabIndex: -1, value: form.reasons[name][number] });
    reason.setAttribute("aria-label", `reason for ${name} of answer ${answer.letter}`);
    let before = "";
    reason.addEventListener("focus", () => { before = JSON.stringify(form); mark = { answer: number, field }; paint(); });
    reason.addEventListener("input", () => {
      if (before) undos.push(before);
      before = "";
      form.reasons[name][number] = reason.value;
      keep();
    });
    card.append(make("div", { className: "field" }, make("span", { className: "label", text: name }), values(number, field, settings.levels), reason));
  });
  card.append(make("div", { className: "field rank" }, make("span", { className: "label", text: "place (1 best)" }), values(number, settings.dimensions.length, query.answers.length)));
  return card;
}

function show(content) {
  $("done").max = Math.max(1, content.progress.wanted);
  $("done").value = content.progress.wanted - content.progress.left;
  $("progress").textContent = `${content.progress.wanted - content.progress.left} of ${content.progress.wanted}, ${content.progress.mine} yours`;
  query = content.query;
  $("join").hidden = true;
  $("bar").hidden = false;
  $("query").hidden = !query;
  $("over").hidden = Boolean(query);
  $("submit").disabled = $("undo").disabled = !query;
  if (!query) return showEnd(content.progress);
  form = query.form;
  mark = { answer: 0, field: 0 };
  undos = []; spent = query.seconds; begun = Date.now();
  $("note").textContent = "";
  showQuestion();
  $("answers").replaceChildren(...query.answers.map(answerCard));
  paint();
  scrollTo(0, 0);
}

function showEnd(progress) {
  const all = progress.left === 0;
  $("over-title").textContent = all ? "Everything is annotated" : "Nothing is left for you";
  $("over-text").textContent = all ? "Thank you. Finishing ends the server; until then everybody can go back and correct." :
    `${progress.left} forms are still wanted of others, or of queries that others have before them now.`;
  $("finish").hidden = !all;
}

function value(answer, field) {
  return field < settings.dimensions.length ? form.scores[settings.dimensions[field]][answer] : form.ranks[answer];
}

function paint() {
  document.querySelectorAll(".answer").forEach((card, answer) => {
    card.classList.toggle("here", answer === mark.answer);
    card.querySelectorAll(".field").forEach((row, field) => {
      row.classList.toggle("here", answer === mark.answer && field === mark.field);
      row.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(Number(button.dataset.value) === value(answer, field))));
    });
  });
  $("flag").checked = Boolean(form.problem);
  $("problem-text").hidden = !form.problem;
  if (document.activeElement !== $("problem-text")) $("problem-text").value = form.problem === settings.problem ? "" : form.problem;
  document.querySelector(".field.here")?.scrollIntoView({ block: "nearest" });
}

// ---- changing it

function remember() { undos.push(JSON.stringify(form)); }

function set(chosen) {
  if (busy) return;
  const most = mark.field < settings.dimensions.length ? settings.levels : query.answers.length;
  if (chosen > most) return;
  remember();
  const column = mark.field < settings.dimensions.length ? form.scores[settings.dimensions[mark.field]] : form.ranks;
  column[mark.answer] = chosen || null;
  if (chosen) step(1);
  keep();
  paint();
}

function step(by) {
  const fields = settings.dimensions.length + 1;
  const place = Math.min(query.answers.length * fields - 1, Math.max(0, mark.answer * fields + mark.field + by));
  mark = { answer: Math.floor(place / fields), field: place % fields };
}

function undo() {
  if (busy || !undos.length) return;
  form = JSON.parse(undos.pop());
  document.querySelectorAll(".answer").forEach((card, answer) => card.querySelectorAll(".reason").forEach((input, field) => { input.value = form.reasons[settings.dimensions[field]][answer]; }));
  keep();
  paint();
}

function flag(on) {
  remember();
  form.problem = on ? settings.problem : "";
  keep();
  paint();
  if (on) $("problem-text").focus();
}

function missing() {
  if (form.problem) return "";
  for (let answer = 0; answer < query.answers.length; answer++)
    for (let field = 0; field <= settings.dimensions.length; field++)
      if (value(answer, field) === null) {
        mark = { answer, field };
        return `answer ${query.answers[answer].letter} has no ${settings.dimensions[field] ?? "place"} yet`;
      }
  return "";
}

// ---- saving

function keep(submit = false) {
  const seconds = spent + (Date.now() - begun) / 1000;
  pending = { annotator: me, query: query.token, form: JSON.parse(JSON.stringify(form)), seconds, submit };
  localStorage.setItem(UNSAVED, JSON.stringify(pending));
  send();
}

async function send() {
  if (sending) return;
  sending = true;
  while (pending) {
    const body = pending;
    pending = null;
    say("saving …");
    try {
      const content = await ask("api/save", body);
      if (!pending) { localStorage.removeItem(UNSAVED); say("saved"); }
      if (body.submit) { busy = false; show(content); }
    } catch (error) {
      if (error.refused) {
        if (!pending) localStorage.removeItem(UNSAVED);
        busy = false;
        say("not saved", true);
        $("note").textContent = error.message;
      } else {
        pending ??= body;
        say("not saved yet, trying again …", true);
        $("saved").title = error.message;
        await new Promise((resume) => setTimeout(resume, 1000));
      }
    }
  }
  sending = false;
}

function say(text, bad = false) { $("saved").textContent = text; $("saved").classList.toggle("bad", bad); }

function submit() {
  if (busy) return;
  const lacking = missing();
  $("note").textContent = lacking;
  if (lacking) return paint();
  busy = true;
  keep(true);
}

async function go(path, more = {}) {
  if (busy || pending || sending) return;
  try { show(await ask(path, { annotator: me, ...more })); say(""); }
  catch (error) { $(me && query ? "note" : "join-note").textContent = error.message; }
}

// ---- keys and buttons

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=checkbox])");
  if (!query || $("query").hidden || $("keys").open) return;
  if (typing) {
    if (event.key === "Enter" || event.key === "Escape") { event.preventDefault(); event.target.blur(); }
    return;
  }
  if (event.ctrlKey || event.metaKey) { if (event.key === "z") { event.preventDefault(); undo(); } return; }
  if (event.altKey) return;
  const fields = settings.dimensions.length + 1;
  const actions = {
    ArrowRight: () => step(fields), ArrowLeft: () => step(-fields), ArrowDown: () => step(1), ArrowUp: () => step(-1),
    r: () => document.querySelector(".field.here .reason")?.focus(), p: () => flag(!form.problem), u: undo, Backspace: undo,
    b: () => go("api/back", { query: query.token }), Enter: submit, "?": () => $("keys").showModal(),
  };
  if (/^[0-9]$/.test(event.key)) set(Number(event.key));
  else if (actions[event.key]) actions[event.key]();
  else return;
  event.preventDefault();
  if (query && !$("query").hidden) paint();
});
$("submit").addEventListener("click", submit);
$("undo").addEventListener("click", undo);
$("back").addEventListener("click", () => go("api/back", query ? { query: query.token } : {}));
$("help").addEventListener("click", () => $("keys").showModal());
$("flag").addEventListener("change", (event) => flag(event.target.checked));
$("problem-text").addEventListener("input", (event) => { form.problem = event.target.value || settings.problem; keep(); });
$("finish").addEventListener("click", async () => {
  try {
    await ask("api/finish", {});
    $("over-title").textContent = "Finished";
    $("over-text").textContent = "The server has ended; this page can be closed.";
    $("finish").hidden = $("bar").hidden = true;
  } catch (error) { $("over-text").textContent = error.message; }
});
$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  me = $("name").value.trim();
  localStorage.setItem(NAME, me);
  $("who").textContent = me;
  go("api/next");
});

(async () => {
  settings = await (await fetch("api/settings")).json();
  const unsaved = JSON.parse(localStorage.getItem(UNSAVED) ?? "null");
  if (unsaved) {
    try { await ask("api/save", { ...unsaved, submit: false }); } catch (error) { console.warn(error.message); }
    localStorage.removeItem(UNSAVED);
  }
  $("name").value = localStorage.getItem(NAME) ?? "";
  $("join").hidden = false;
  $("name").focus();
})();
