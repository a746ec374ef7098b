"""Reports of demos and training runs: pictures, HTML page, report.json and tables on the terminal."""
