"use strict";

const TEST = JSON.parse(document.getElementById("test").textContent);
// So much of each clip must be heard, or all of it if it is shorter.
const HEAR_SECONDS = 3;
// The headphones check of Woods et al. (2017): which of three tones is softest? One is 6 dB softer.
// Another has its sides in antiphase: between loudspeakers it all but vanishes, in headphones not.
const TONE_HZ = 200;
const TONE_SECONDS = 1;
const PAUSE_SECONDS = 0.5;
const RAMP_SECONDS = 0.1;
const TONE_LEVEL = 0.25;
const TONES = [
  { left: 1, right: 1 },
  { left: 0.5, right: 0.5, softest: true },
  { left: 1, right: -1 },
];
const TRIALS = 6;
const TRIALS_TO_PASS = 5;

const element = (id) => document.getElementById(id);

// Chance -----------------------------------------------------------------------------------------

function mix(bits) {
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return (bits ^ (bits >>> 16)) >>> 0;
}

/** Draws from [0, 1) that are the same for the same text, in every browser. */
function generator(text) {
  let seed = 0;
  for (const letter of text) seed = mix(Math.imul(seed, 31) + letter.codePointAt(0));
  let drawn = 0;
  return () => mix(seed + Math.imul(++drawn, 0x9e3779b9)) / 2 ** 32;
}

function shuffled(items, draw) {
  const result = [...items];
  for (let last = result.length - 1; last > 0; last--) {
    const other = Math.floor(draw() * (last + 1));
    [result[last], result[other]] = [result[other], result[last]];
  }
  return result;
}

/** What a participant hears, in order, and which clip is A. */
function planOf(participant) {
  const draw = generator(`${TEST.test}/${participant}`);
  return shuffled(TEST.comparisons, draw)
    .slice(0, TEST.perParticipant)
    .map(({ id, caption, clips }) => {
      const [a, b] = shuffled(clips, draw);
      return { id, caption, a, b };
    });
}

function randomName(length) {
  const letters = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"; // 32, none of them like another
  const bytes = crypto.getRandomValues(new Uint8Array(length));
  return Array.from(bytes, (byte) => letters[byte % letters.length]).join("");
}

// What is kept: the answers as they are saved at the end -----------------------------------------

const STORE = `musiclm-listen/${TEST.test}`;

function read(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // forbidden: `write` tells
  }
}

function write(name, text) {
  try {
    localStorage.setItem(name, text);
  } catch {
    warn("This browser keeps nothing: do not reload or close the page before the end.");
  }
}

/** Whoever the address names, else whoever began in this browser, else somebody new. */
function findParticipant() {
  const named = new URLSearchParams(location.search).get("participant");
  if (named) return named;
  const known = read(`${STORE}/unnamed`) ?? randomName(10);
  write(`${STORE}/unnamed`, known);
  return known;
}

const participant = findParticipant();
const plan = planOf(participant);
const state = restore() ?? {
  test: TEST.test,
  participant,
  code: `${randomName(4)}-${randomName(4)}`,
  started: new Date().toISOString(),
  headphones: null,
  answers: [],
};

function restore() {
  try {
    const kept = JSON.parse(read(`${STORE}/of/${participant}`));
    const isInOrder = kept.answers.every((answer, i) => answer.id === plan[i].id);
    return kept.test === TEST.test && kept.code && isInOrder ? kept : null;
  } catch {
    return null; // nothing, or damaged
  }
}

function keep() {
  write(`${STORE}/of/${participant}`, JSON.stringify(state));
}

// Screens ----------------------------------------------------------------------------------------

function show(id) {
  for (const section of document.querySelectorAll("section")) section.hidden = section.id !== id;
  const done = state.answers.length;
  const number = id === "comparison" ? `${done + 1} of ${plan.length}` : "";
  element("progress").textContent = number;
  element(id).querySelector("h2").focus(); // readers begin here, and Tab goes on from here
  window.scrollTo(0, 0);
}

function warn(text) {
  element("trouble").textContent = text;
  element("trouble").hidden = false;
}

function plural(count, one, many) {
  return `${count} ${count === 1 ? one : many}`;
}

function next() {
  if (state.answers.length < plan.length) return compare(plan[state.answers.length]);
  state.finished ??= new Date().toISOString();
  keep();
  element("code").textContent = state.code;
  element("who").textContent = participant;
  show("end");
}

// Headphones -------------------------------------------------------------------------------------

let sound = null;

/** Tones one after another, as [left, right] samples. */
function toneSamples(tones, rate) {
  const length = Math.round(TONE_SECONDS * rate);
  const period = Math.round((TONE_SECONDS + PAUSE_SECONDS) * rate);
  const sides = [0, 1].map(() => new Float32Array(period * tones.length));
  tones.forEach((tone, position) => {
    for (let i = 0; i < length; i++) {
      const edge = Math.min(i, length - 1 - i) / (RAMP_SECONDS * rate);
      const ramp = edge < 1 ? 0.5 - 0.5 * Math.cos(Math.PI * edge) : 1;
      const value = TONE_LEVEL * ramp * Math.sin((2 * Math.PI * TONE_HZ * i) / rate);
      sides[0][position * period + i] = tone.left * value;
      sides[1][position * period + i] = tone.right * value;
    }
  });
  return sides;
}

async function playTones(tones) {
  sound ??= new AudioContext();
  await sound.resume();
  const sides = toneSamples(tones, sound.sampleRate);
  const buffer = sound.createBuffer(2, sides[0].length, sound.sampleRate);
  sides.forEach((samples, side) => buffer.copyToChannel(samples, side));
  const source = new AudioBufferSourceNode(sound, { buffer });
  source.connect(sound.destination);
  await new Promise((resolve) => {
    source.onended = resolve;
    source.start();
  });
}

/** Plays while all of the section's buttons wait. */
async function playAlone(tones) {
  const buttons = [element("level"), element("play-tones")];
  const pressed = document.activeElement;
  for (const button of buttons) button.disabled = true;
  try {
    await playTones(tones);
  } catch (error) {
    warn(`This browser cannot play the tones (${error.message}): please take another one.`);
  }
  for (const button of buttons) button.disabled = false;
  pressed?.focus(); // a button that was disabled has lost it
}

const check = { trials: [], correct: 0 };

function checkHeadphones() {
  const attempt = (state.headphones?.attempts ?? 0) + 1;
  const draw = generator(`${TEST.test}/${participant}/headphones/${attempt}`);
  check.trials = Array.from({ length: TRIALS }, () => shuffled(TONES, draw));
  check.correct = 0;
  show("headphones");
  nextTrial();
}

function nextTrial() {
  const form = element("tones");
  form.reset();
  form.querySelector("fieldset").disabled = true;
  form.querySelector(".main").disabled = true;
  element("trial").textContent = `${TRIALS - check.trials.length + 1} of ${TRIALS}.`;
}

element("level").onclick = () => playAlone([TONES[0]]);
element("play-tones").onclick = async () => {
  await playAlone(check.trials[0]);
  element("tones").querySelector("fieldset").disabled = false;
};
element("tones").onchange = () => {
  element("tones").querySelector(".main").disabled = false;
};
element("tones").onsubmit = (event) => {
  event.preventDefault();
  const tones = check.trials.shift();
  check.correct += tones[Number(new FormData(event.target).get("softest"))].softest ? 1 : 0;
  if (check.trials.length) {
    nextTrial();
    element("play-tones").focus();
    return;
  }
  const attempts = (state.headphones?.attempts ?? 0) + 1;
  const passed = check.correct >= TRIALS_TO_PASS;
  state.headphones = { passed, correct: check.correct, trials: TRIALS, attempts };
  keep();
  element("correct").textContent = `${check.correct} of ${TRIALS}`;
  show(passed ? "instructions" : "failed");
};

// A comparison -----------------------------------------------------------------------------------

const players = Array.from(document.querySelectorAll(".player"), (box) => ({
  side: box.dataset.side,
  box,
  button: box.querySelector("button"),
  position: box.querySelector("input"),
  told: box.querySelector(".told"),
  audio: box.querySelector("audio"),
}));
let shownAt = 0;

/** Seconds of a clip that were heard, each counted once. */
function heard({ audio }) {
  let seconds = 0;
  for (let i = 0; i < audio.played.length; i++) {
    seconds += audio.played.end(i) - audio.played.start(i);
  }
  return seconds;
}

function isHeard(player) {
  // A little less than all: players stop short of the last samples.
  return heard(player) >= Math.min(HEAR_SECONDS, 0.9 * player.audio.duration);
}

function compare(comparison) {
  element("caption").textContent = comparison.caption;
  element("answer").reset();
  for (const player of players) {
    player.audio.src = comparison[player.side];
    player.position.value = 0;
    update(player);
  }
  const following = plan[state.answers.length + 1];
  if (following) for (const { side } of players) new Audio(following[side]).preload = "auto";
  show("comparison");
  shownAt = performance.now();
}

function update(player) {
  const { audio, box, button, position, side, told } = player;
  const isPlaying = !audio.paused && !audio.ended;
  box.classList.toggle("playing", isPlaying);
  button.setAttribute("aria-label", `${isPlaying ? "Pause" : "Play"} clip ${side.toUpperCase()}`);
  if (audio.duration) position.value = audio.currentTime / audio.duration;
  const seconds = heard(player);
  told.textContent = seconds > 0 ? `${Math.floor(seconds)} s heard` : "not heard yet";
  const waiting = players.filter((each) => !isHeard(each));
  element("answer").querySelector("fieldset").disabled = waiting.length > 0;
  const chosen = new FormData(element("answer")).get("choice");
  element("answer").querySelector(".main").disabled = waiting.length > 0 || !chosen;
  const names = waiting.map((each) => each.side.toUpperCase()).join(" and ");
  const wanted = names ? `Listen to ${names} first, ${HEAR_SECONDS} seconds or more.` : "";
  // Only what changed is read out.
  if (element("wanted").textContent !== wanted) element("wanted").textContent = wanted;
}

function toggle(player) {
  if (!player.audio.paused) return player.audio.pause();
  for (const other of players) if (other !== player) other.audio.pause();
  // Refused where another clip has taken its place meanwhile; what can't be played is an error.
  player.audio.play().catch(() => {});
}

for (const player of players) {
  player.button.onclick = () => toggle(player);
  player.position.oninput = () => {
    const { audio, position } = player;
    if (audio.duration) audio.currentTime = position.value * audio.duration;
  };
  for (const event of ["play", "pause", "ended", "timeupdate", "loadedmetadata"]) {
    player.audio.addEventListener(event, () => update(player));
  }
  player.audio.onerror = () => {
    warn(`Clip ${player.side.toUpperCase()} cannot be played: please reload the page.`);
  };
}

TEST.scale.forEach((word, i) => {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "choice", value: word, required: true });
  input.setAttribute("aria-keyshortcuts", String(i + 1));
  const text = document.createElement("span");
  text.textContent = word;
  label.append(input, text);
  element("scale").append(label);
});
element("answer").onchange = () => update(players[0]);
element("answer").onsubmit = (event) => {
  event.preventDefault();
  for (const { audio } of players) audio.pause();
  const { id, a, b } = plan[state.answers.length];
  const round = (seconds) => Math.round(seconds * 100) / 100;
  state.answers.push({
    id,
    a,
    b,
    answer: new FormData(event.target).get("choice"),
    listened: Object.fromEntries(players.map((player) => [player.side, round(heard(player))])),
    seconds: round((performance.now() - shownAt) / 1000),
    time: new Date().toISOString(),
  });
  keep();
  next();
};

document.addEventListener("keydown", (event) => {
  if (element("comparison").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const player = players.find(({ side }) => side === event.key.toLowerCase());
  if (player && !event.repeat) toggle(player);
  const choice = element("scale").querySelectorAll("input")[Number(event.key) - 1];
  if (choice && !choice.matches(":disabled")) {
    choice.checked = true;
    choice.focus(); // so that Enter goes on
    update(players[0]);
  }
});

// The way through --------------------------------------------------------------------------------

element("begin").onclick = checkHeadphones;
element("again").onclick = checkHeadphones;
element("anyway").onclick = () => show("instructions");
element("start").onclick = next;
element("save").onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(
    new Blob([JSON.stringify(state, null, 1) + "\n"], { type: "application/json" }),
  );
  link.download = `answers-${participant.replace(/[^\w.-]+/g, "_")}.json`;
  link.click();
};

element("count").textContent = plural(plan.length, "pair of clips", "pairs of clips");
element("minutes").textContent = plural(Math.ceil(2 + plan.length * 0.6), "minute", "minutes");
if (state.answers.length) next();
else if (state.headphones?.passed) show("instructions");
else show("welcome");
