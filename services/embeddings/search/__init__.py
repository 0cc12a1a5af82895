"""Search among stored samples and items that were added to them."""
