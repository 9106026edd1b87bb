"""HTTP to places elsewhere: URLs, proxies, certificates that are trusted for the web."""
