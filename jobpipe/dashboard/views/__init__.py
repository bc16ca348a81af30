"""What the pages show: facts made into words, figures and links. Pure, one module a page."""
