"use strict";

// What the agent sends is text: it becomes text nodes, never markup.
function row(cells) {
  const line = document.createElement("tr");
  for (const cell of cells) {
    line.appendChild(document.createElement("td")).textContent = cell;
  }
  return line;
}

async function get(path) {
  const answer = await fetch("/api/v1/" + path);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.message + "; " + body.next_step);
  return body;
}

async function show() {
  const [host, ssds] = await Promise.all([get("host"), get("ssds")]);
  document.getElementById("host").textContent = host.reason ?? "engine " + host.engine + ", number " + host.engine_generation;
  const rows = ssds.items.map((ssd) => row([ssd.name, ssd.size_bytes, ssd.phase, ssd.serving.state]));
  document.getElementById("ssds").replaceChildren(...rows);
  return ssds.version;
}

async function live() {
  for (;;) {
    try {
      const version = await show();
      await get("watch?wait_s=5&after=" + version);
    } catch (error) {
      document.getElementById("host").textContent = "The agent does not answer: " + error.message;
      await new Promise((again) => setTimeout(again, 2000));
    }
  }
}

live();
