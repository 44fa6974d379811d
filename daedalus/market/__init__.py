"""The market: random numbers, auctions, bidders who learn, rewards, the engine, and the record of a round."""
