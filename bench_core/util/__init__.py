"""General-purpose helpers with no knowledge of networks, exits or leaderboards."""
