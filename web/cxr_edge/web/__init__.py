"""The page: decision, doubt and heatmap in a browser, by a server or by the browser itself."""
