"""The verb `predict`: from overrides to a forecast on the screen, a ranked grid, or a map of phases; trains nothing."""
