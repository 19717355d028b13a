/* Set the theme that was chosen before the first paint. A plain script, so that nothing is painted before it. */
"use strict";
try {
  const theme = localStorage.getItem("qwq.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* storage is off: the system decides */ }
