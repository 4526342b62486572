"""Many networks in one: trained together, searched, and the best one cut out."""
