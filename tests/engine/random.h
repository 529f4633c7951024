// Random values: the same in each run.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace qgemm::test {

inline std::mt19937 rng(1);
inline std::int64_t Random(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}
inline float RandomFloat() { return std::normal_distribution<float>()(rng); }

template <class T>
T Pick(const std::vector<T>& from) {
  return from[std::size_t(Random(0, std::int64_t(from.size()) - 1))];
}

}  // namespace qgemm::test
