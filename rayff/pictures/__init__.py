"""Pictures of what a training left behind, and the page that holds them; needs no Ray."""
