// The status page: polls the runtime API once a second and draws with SVG. No libraries, no external resources.
"use strict";

const KEPT = 120; // snapshots in a plot
const INTERVAL = 1000; // refresh interval, milliseconds
const COLOURS = ["#3b7dd8", "#e0803a", "#3a9d5d", "#b3509b", "#8a7a3c", "#4aa3a3", "#c94f4f", "#777"];
const $ = (id) => document.getElementById(id);

let token = sessionStorage.getItem("token") || "";
let before = null;
const history = []; // {name, values: Map(series -> number)} per snapshot

async function ask(path) {
  const answer = await fetch("v1/" + path, { headers: { Authorization: "Bearer " + token } });
  if (answer.status === 401) throw new Refused();
  const data = await answer.json();
  if (!answer.ok) throw new Error(data.error);
  return data;
}

class Refused extends Error {}

async function snapshot() {
  const [status, services, stats, clients] = await Promise.all(["status", "services", "stats", "clients"].map(ask));
  return { moment: performance.now() / 1000, status, services: services.services, stats, clients };
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function short(value) {
  for (const unit of ["", "k", "M", "G", "T"]) {
    if (value < 999.5 || unit === "T") return value.toFixed(unit && value < 9.95 ? 1 : 0) + unit;
    value /= 1000;
  }
}

function duration(seconds) {
  const [d, h, m] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min` : `${Math.floor(seconds)} s`;
}

// Each backend with its rates per second since the previous snapshot.
function backends(now) {
  const elapsed = before ? now.moment - before.moment : 0;
  const past = new Map();
  for (const service of before ? before.services : [])
    for (const one of service.backends) past.set(service.name + " " + one.address, one);
  const found = [];
  for (const service of now.services)
    for (const one of service.backends) {
      const old = past.get(service.name + " " + one.address);
      const rate = (key) => (old && elapsed ? Math.max(0, one[key] - old[key]) / elapsed : 0);
      found.push({
        ...one,
        service: service.name,
        label: (now.services.length > 1 ? service.name + " " : "") + one.address,
        opened: rate("flows"),
        bits: 8 * (rate("bytes_forward") + rate("bytes_reply")),
        failing: rate("refused") + rate("syn_timeouts") + rate("resets"),
      });
    }
  return found;
}

const PLOTS = [
  ["New connections per second", (one) => one.opened],
  ["Open connections", (one) => one.active],
  ["Throughput, bit/s", (one) => one.bits],
  ["Failed connections per second", (one) => one.failing],
];

function drawPlot([title, value]) {
  const figure = element("figure");
  const caption = element("figcaption", title);
  const names = history.length ? history[history.length - 1].map((one) => one.label) : [];
  const series = names.map((name) =>
    history.map((found) => {
      const one = found.find((each) => each.label === name);
      return one ? value(one) : 0;
    }),
  );
  const top = Math.max(1, ...series.flat());
  const latest = series.reduce((sum, values) => sum + values[values.length - 1], 0);
  caption.append(element("b", short(latest)));
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${KEPT - 1} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", title);
  series.forEach((values, i) => {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    const start = KEPT - values.length;
    line.setAttribute("points", values.map((v, x) => `${start + x},${(98 - (94 * v) / top).toFixed(1)}`).join(" "));
    line.setAttribute("fill", "none");
    line.setAttribute("stroke", COLOURS[i % COLOURS.length]);
    line.setAttribute("stroke-width", "2");
    line.setAttribute("vector-effect", "non-scaling-stroke");
    svg.append(line);
  });
  const key = element("div", `0 to ${short(top)}`, "key");
  names.forEach((name, i) => {
    const mark = element("i");
    mark.style.background = COLOURS[i % COLOURS.length];
    key.append(mark, name);
  });
  figure.append(caption, svg, key);
  return figure;
}

function row(cells, name = "td") {
  const made = element("tr");
  for (const cell of cells) made.append(cell instanceof Node ? cell : element(name, String(cell)));
  return made;
}

function drawService(service, found) {
  const title = element("h2", service.name + " ");
  title.append(element("small", `${service.vips.join(", ")}/${service.protocol}, ${service.scheduler}, ${service.nat}, ${service.datapath}`));
  if (service.panic) title.append(element("span", " panic: all backends are used", "bad"));
  if (!service.backends.length) return [title, element("p", "No backend: connections are refused.", "bad")];
  const table = element("table");
  table.append(row(["backend", "state", "weight", "open", "new/s", "bit/s", "resets", "failed"], "th"));
  for (const one of found.filter((each) => each.service === service.name)) {
    const failed = one.refused + one.syn_timeouts;
    table.append(
      row([
        one.address || one.backend,
        element("td", one.state === "up" && one.role !== "primary" ? one.role : one.state, one.state === "up" ? "good" : "warn"),
        0 < one.effective_weight && one.effective_weight < one.weight ? `${one.effective_weight} of ${one.weight}` : one.weight,
        short(one.active) + (one.max_connections ? `/${short(one.max_connections)}` : ""),
        short(one.opened),
        short(one.bits),
        short(one.resets),
        element("td", short(failed), failed ? "bad" : ""),
      ]),
    );
  }
  return [title, table];
}

function drawHead({ status, stats }) {
  const lost = stats.queues.reduce((sum, queue) => sum + queue.queue_dropped + queue.socket_dropped + queue.verdict_refused + queue.frames.dropped, 0);
  const facts = [
    ["instance", status.instance],
    ["up", duration(status.uptime)],
    ["workers", status.workers.length],
    ["flows", `${short(status.flows)} of ${short(status.capacity)}`],
    ["dropped", short(stats.dropped)],
    ["lost by the kernel", short(lost), lost ? "bad" : ""],
  ];
  if (status.changes) facts.push(["run-time changes", status.changes, "warn"]);
  if (status.reload_error) facts.push(["last reload", "refused", "bad"]);
  const head = $("head");
  head.replaceChildren(element("h1", "featherlb"));
  for (const [name, value, className] of facts) {
    const fact = element("span", name + " ");
    fact.append(element("b", String(value), className));
    head.append(fact);
  }
}

function draw(now) {
  const found = backends(now);
  if (before) history.push(found);
  if (history.length > KEPT) history.shift();
  drawHead(now);
  $("plots").replaceChildren(...PLOTS.map(drawPlot));
  $("services").replaceChildren(...now.services.flatMap((service) => drawService(service, found)));
  const { clients, sampled, flows } = now.clients;
  $("sample").textContent = sampled < flows ? `of a sample of ${short(sampled)} flows` : "";
  $("clients").replaceChildren(
    row(["client", "", "flows", "share"], "th"),
    ...clients.map((one) => row([one.client, "", short(one.flows), Math.round((100 * one.flows) / sampled) + " %"])),
  );
  before = now;
}

async function turn() {
  let again = INTERVAL;
  try {
    draw(await snapshot());
    $("ask").hidden = true;
    $("view").hidden = false;
    $("error").textContent = "";
  } catch (error) {
    if (error instanceof Refused) {
      again = 0;
      $("ask").hidden = false;
      $("error").textContent = token ? "Wrong token." : "";
    } else {
      $("error").textContent = "featherlb does not answer: " + error.message;
    }
  }
  if (again) setTimeout(turn, again);
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  sessionStorage.setItem("token", token);
  turn();
});
turn();
