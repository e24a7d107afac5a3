"""The suite `nll`: windows of the user's texts, scored token by token."""
