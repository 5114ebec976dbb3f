// Adds the local time to each time of the page. Each page is complete without this script.
"use strict";
for (const element of document.querySelectorAll("time[datetime]")) {
  const at = new Date(element.dateTime);
  if (Number.isNaN(at.getTime()) || at.getTimezoneOffset() === 0) continue;
  const local = document.createElement("span");
  local.className = "hint";
  local.textContent = " " + at.toLocaleTimeString([], { timeZoneName: "short" });
  element.after(local);
}
