"""`sheaf status`: one model in the terminal. Reads with the user's own kubectl, so it needs no operator, no
library and no right but the user's."""
