"use strict";
// A user of Chromium: serves page.html to it and does in its tabs what standard input says.
//
// usage: browser.cjs PROFILE PAGE SCREENSHOT
//
// A line is {"page": NAME, "call": FUNCTION, "with": [...]}: a function of the page in the tab of that name, which is
// opened when it is named first; where the name is an origin, the page is from there. The answer is a line, too: {"answer": VALUE} or {"error": TEXT}. At the end of standard
// input each tab is photographed to SCREENSHOT-NAME.png, and the browser closes.

const { readFileSync } = require("node:fs");
const { createServer } = require("node:http");
const { createInterface } = require("node:readline");
const { chromium } = require("playwright-core");

const [profile, page, screenshot] = process.argv.slice(2);

const ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

async function main() {
  const content = readFileSync(page);
  const server = createServer((_request, response) => {
    response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" }).end(content);
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const site = `http://localhost:${server.address().port}`;
  const browser = await chromium.launchPersistentContext(profile, {
    // Sites of the internet ask their users before they go to addresses of the machine.
    permissions: ["local-network-access"],
    executablePath: "/usr/bin/chromium",
    args: ARGUMENTS,
    viewport: { width: 640, height: 240 },
  });
  const tabs = new Map();
  const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);
  say({ answer: { site, version: browser.browser()?.version() ?? "unknown" } });
  for await (const line of createInterface({ input: process.stdin })) {
    const order = JSON.parse(line);
    try {
      if (!tabs.has(order.page)) {
        const tab = await browser.newPage();
        tab.on("console", (message) => console.error(`${order.page}: ${message.text()}`));
        if (order.page.startsWith("https://")) {
          // No such site is asked: its page is the same one.
          await tab.route(`${order.page}/`, (route) => route.fulfill({ contentType: "text/html", body: content }));
          await tab.goto(order.page);
        } else {
          await tab.goto(site);
        }
        tabs.set(order.page, tab);
      }
      const called = ([name, values]) => window.peer[name](...values);
      const value = await tabs.get(order.page).evaluate(called, [order.call, order.with]);
      say({ answer: value ?? null });
    } catch (error) {
      say({ error: String(error) });
    }
  }
  for (const [name, tab] of tabs) {
    await tab.screenshot({ path: `${screenshot}-${name.replaceAll(/[^\w-]/g, "_")}.png` });
  }
  await browser.close();
  server.close();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
