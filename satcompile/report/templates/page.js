// Two things that plotly cannot be told beforehand: texts that many points share, and the
// reader's colours.
"use strict";

const charts = Array.from(document.querySelectorAll(".plotly-graph-div"));

function writeSharedTexts(script) {
  const { lines, traces } = JSON.parse(script.textContent);
  const texts = traces.map((points) =>
    points.map((numbers) => numbers.map((number) => lines[number]).join("<br>"))
  );
  return Plotly.restyle(script.dataset.chart, { text: texts }, traces.map((_, index) => index));
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function useReadersColours() {
  const [ink, soft, paper, line] = ["--ink", "--soft", "--panel", "--line"].map(colour);
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
  const layout = {
    "font.color": ink,
    "modebar.color": soft,
    "modebar.activecolor": ink,
    "hoverlabel.bgcolor": paper,
    "hoverlabel.bordercolor": line,
    "hoverlabel.font.color": ink,
  };
  for (const name of ["xaxis", "yaxis"]) {
    for (const [key, value] of Object.entries(axis)) layout[`${name}.${key}`] = value;
  }
  for (const chart of charts) Plotly.relayout(chart, layout);
}

document.querySelectorAll("script.shared-texts").forEach(writeSharedTexts);
useReadersColours();
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", useReadersColours);
