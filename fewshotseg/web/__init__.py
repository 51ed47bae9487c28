"""Local pages: live prediction in a browser, with a model that stays in memory."""
