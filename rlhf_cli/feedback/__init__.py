"""Human feedback: the store of judgments, their quality, and the preference data made of them."""
