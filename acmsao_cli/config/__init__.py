"""What a run is: frozen models of a recipe, and how one is put together. Never imports torch."""
