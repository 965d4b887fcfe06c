"""Reports about incidents: facts from events, as a page of HTML and as text for a terminal."""
