"""Many recipes for one model, side by side: a grid, its points, which are best, and the page that shows them."""
