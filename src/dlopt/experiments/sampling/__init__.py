"""Topic `sampling`: which example comes next, on LASSO, logistic regression, images, and where theory is exact."""
