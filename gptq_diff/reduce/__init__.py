"""The smallest call of one linear that still shows a defect, and the script that shows it without this tool."""
