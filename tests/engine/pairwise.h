// Covering sets of combinations.
#pragma once

#include <algorithm>
#include <array>
#include <random>
#include <set>
#include <vector>

// Rows of one value, from 0, for each factor, such that every pair of values of any two factors is
// in some row. Of each next row, which has the first missing pair, the best of some tries is taken.
inline std::vector<std::vector<int>> Pairwise(const std::vector<int>& sizes, std::mt19937& rng) {
  using Pair = std::array<int, 4>;  // factor and value, twice
  const int factors = int(sizes.size());
  std::set<Pair> missing;
  for (int i = 0; i < factors; ++i) {
    for (int j = i + 1; j < factors; ++j) {
      for (int a = 0; a < sizes[i]; ++a) {
        for (int b = 0; b < sizes[j]; ++b) missing.insert({i, a, j, b});
      }
    }
  }
  const auto for_pairs = [factors](const std::vector<int>& row, auto&& f) {
    for (int i = 0; i < factors; ++i) {
      for (int j = i + 1; j < factors; ++j) f(Pair{i, row[i], j, row[j]});
    }
  };
  std::vector<std::vector<int>> rows;
  while (!missing.empty()) {
    const auto [i, a, j, b] = *missing.begin();
    std::vector<int> best;
    int most = 0;
    for (int tries = 0; tries < 40; ++tries) {
      std::vector<int> row;
      for (const int size : sizes) row.push_back(int(rng() % unsigned(size)));
      row[i] = a;
      row[j] = b;
      int covered = 0;
      for_pairs(row, [&](const Pair& pair) { covered += int(missing.count(pair)); });
      if (covered <= most) continue;
      most = covered;
      best = row;
    }
    for_pairs(best, [&](const Pair& pair) { missing.erase(pair); });
    rows.push_back(best);
  }
  return rows;
}
