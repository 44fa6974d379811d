"""Rules by which bidders learn: updates by hand, what each may look at, and markets that give the same bits in any company."""

import json
import math
import time

import numpy as np
import pytest

from daedalus import _runtime as runtime
from daedalus.env import FAMILY, PRACTISED, draw_families, draw_training_population, suite
from daedalus.market.bidders import (
    ARMS, BEHAVIOUR, DISCOUNT, EVERYTHING, EXP3, FICTITIOUS_PLAY, FIRST_ESTIMATE, FLIP, HELD_OUT_RULES, IMITATION,
    LEARNING_RULES, LEVEL_K, LEVELS, MOVES, MUTATION, NOTHING, PRICE_ONLY, Q_LEARNING, REGRET_MATCHING, RULE_BEHAVIOUR, SHILL, TRAITS,
    UCB, WIDTH, Population, PopulationError, best_answer, draw_by_rule, estimate, learn_by_rule, level_arm, level_payoffs,
    opening_memory, optimistic_action, regret_chances, replicate, shade, shows, update_regret)
from daedalus.market.engine import COLUMN, MarketState, advance, new_market, open_market, simulate
from daedalus.schema import DEFAULT_MECHANISM, Mechanism

FIRST = Mechanism(auction_type="first_price", reveal_competing_bids=True, reserve_price=0.0)
PRICES = Mechanism(auction_type="first_price", reveal_clearing_price=True, reserve_price=0.0)
HIDDEN = Mechanism(auction_type="second_price", reveal_clearing_price=False)
FACTORS = np.array([shade(arm) for arm in range(ARMS)])
CROWD = dict(truthful=1, shader=2, dropout=1, colluder=2, exploiter=2, n_items=2)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def rows(**at):
    "A row of payoffs, 0 but for some arms: a3=1.0."
    row = np.zeros(MOVES)
    for name, value in at.items():
        row[int(name[1:])] = value
    return row


# Updates by hand

def test_what_a_session_shows_is_what_is_disclosed():
    assert [arm for arm in range(ARMS) if shows(arm, 4, NOTHING, True)] == [4]
    assert [arm for arm in range(ARMS) if shows(arm, 4, PRICE_ONLY, True)] == list(range(4, ARMS))
    assert all(shows(arm, 4, PRICE_ONLY, False) and shows(arm, 4, EVERYTHING, True) for arm in range(MOVES))
    assert shows(FLIP, 4, PRICE_ONLY, True) and not shows(FLIP, 4, NOTHING, True)


def test_partial_knowledge_is_weighted_by_the_chance_of_having_it():
    assert estimate(2.0, 3, 3, 0.25, 0.5, NOTHING, True, 0.15) == 2.0 / 0.4
    assert estimate(2.0, 4, 3, 0.25, 0.5, NOTHING, True, 0.15) == 0
    assert estimate(2.0, 4, 3, 0.25, 0.5, PRICE_ONLY, True, 0.3) == 2.0 / 0.8
    assert estimate(2.0, 2, 3, 0.25, 0.5, PRICE_ONLY, True, 0.3) == 0
    assert estimate(2.0, 2, 3, 0.25, 0.5, EVERYTHING, True, 0.3) == 2.0


def learned(rule, payoff, played, known=EVERYTHING, memory=None, tries=None, chances=None, behaviour=BEHAVIOUR):
    "What one bidder knows after a session."
    memory = np.zeros((1, MOVES)) if memory is None else memory
    tries, chances = np.zeros((1, MOVES)) if tries is None else tries, np.full(MOVES, 1 / ARMS) if chances is None else chances
    learn_by_rule(rule, memory, tries, 0, payoff, chances, played, ARMS, known, True, behaviour)
    return memory[0], tries[0]


def test_exp3_looks_at_the_arm_it_played_whatever_is_disclosed():
    payoff = rows(a2=1.0, a5=9.0)
    expected = RULE_BEHAVIOUR.precision / (1 / ARMS + RULE_BEHAVIOUR.tremble)
    for known in (NOTHING, PRICE_ONLY, EVERYTHING):
        memory, _ = learned(EXP3, payoff, 2, known)
        assert memory[2] == pytest.approx(expected) and not np.delete(memory, 2).any()


def test_ucb_averages_what_it_earned():
    memory, tries = np.zeros((1, MOVES)), np.zeros((1, MOVES))
    for gain in (3.0, 1.0):
        learned(UCB, rows(a4=gain, a5=9.0), 4, memory=memory, tries=tries)
    assert memory[0].tolist() == rows(a4=2.0).tolist() and tries[0].tolist() == rows(a4=2.0).tolist()


def test_ucb_plays_what_it_never_tried_and_then_the_highest_bound():
    mean, count = np.array([1.0, 1.2, 0.5]), np.array([4.0, 0.0, 9.0])
    assert optimistic_action(mean, count, 0.9) == 1
    count[1] = 9.0
    bounds = mean + WIDTH * np.sqrt(2 * math.log(22) / count)
    assert optimistic_action(mean, count, 0.9) == bounds.argmax() == 0


def test_q_learning_corrects_a_part_of_its_error():
    memory = np.full((1, MOVES), FIRST_ESTIMATE)
    learned(Q_LEARNING, rows(a3=1.0), 3, memory=memory)
    target = 1.0 + DISCOUNT * FIRST_ESTIMATE
    assert memory[0, 3] == pytest.approx(FIRST_ESTIMATE + RULE_BEHAVIOUR.rate * (target - FIRST_ESTIMATE))
    assert (np.delete(memory[0], 3) == FIRST_ESTIMATE).all()


def test_regret_is_what_an_arm_would_have_earned_more():
    regret = np.zeros(MOVES)
    update_regret(regret, rows(a0=1.0, a1=3.0), np.full(MOVES, 0.5), 0, 2, EVERYTHING, True, BEHAVIOUR)
    assert regret[:2].tolist() == [0.0, 2.0]
    update_regret(regret, rows(a0=2.0, a1=1.0), np.full(MOVES, 0.5), 1, 2, EVERYTHING, True, BEHAVIOUR)
    assert regret[:2] == pytest.approx([1.0, 2.0 * BEHAVIOUR.memory])
    chances = np.zeros(2)
    regret_chances(chances, np.array([1.0, 3.0]), 2, 0.2)
    assert chances == pytest.approx([0.8 * 0.25 + 0.1, 0.8 * 0.75 + 0.1])
    regret_chances(chances, np.array([-1.0, 0.0]), 2, 0.2)
    assert chances.tolist() == [0.5, 0.5]


def test_fictitious_play_averages_what_was_shown_with_weights_that_fall_with_age():
    memory, tries = np.zeros((1, MOVES)), np.zeros((1, MOVES))
    learned(FICTITIOUS_PLAY, np.full(MOVES, 1.0), 3, PRICE_ONLY, memory, tries)
    assert tries[0, :ARMS].tolist() == [0.0] * 3 + [1.0] * 8
    learned(FICTITIOUS_PLAY, np.full(MOVES, 3.0), 0, PRICE_ONLY, memory, tries)
    fresh = 1 / (1 + BEHAVIOUR.memory)
    assert memory[0, :ARMS] == pytest.approx([3.0] * 3 + [1.0 + 2.0 * fresh] * 8)
    assert tries[0, :ARMS] == pytest.approx([1.0] * 3 + [1.0 + BEHAVIOUR.memory] * 8)
    hidden, seen = learned(FICTITIOUS_PLAY, np.full(MOVES, 1.0), 3, NOTHING)
    assert hidden.tolist() == seen.tolist() == rows(a3=1.0).tolist()


def test_the_best_answer_is_what_was_not_seen_yet_then_the_best_and_of_equals_the_highest():
    mean, count = rows(a2=1.0, a6=1.0), np.ones(MOVES)
    count[5] = 0
    assert best_answer(mean, count, ARMS, 0.99) == 5
    count[5] = 1
    assert best_answer(mean, count, ARMS, 0.99) == 6
    assert best_answer(rows(a2=1.0, a12=1.0), count, MOVES, 0.5) == 2
    assert best_answer(rows(a2=1.0, a12=1.1), count, MOVES, 0.5) == SHILL


def test_shares_follow_the_replicator_equation():
    shares = np.array([0.5, 0.3, 0.2])
    grown = shares * np.exp(IMITATION * np.array([0.0, 1.0, 2.0]))
    replicate(shares, np.array([0.0, 1.0, 2.0]), IMITATION)
    assert shares == pytest.approx((1 - MUTATION) * grown / grown.sum() + MUTATION / 3)


@pytest.mark.parametrize("n, levels", [(2, [1.0, 0.5, 0.5]), (3, [1.0, 0.65, 0.65]), (5, [1.0, 0.8, 0.8]), (8, [1.0, 0.85, 0.85])])
def test_levels_by_hand(n, levels):
    """Against the truth arm f earns (1 - f) f ** (n - 1) / (n + 1) per lot: the best is near (n - 1) / n."""
    assert [shade(level_arm(level, n, 1, 0.0, 1.0)) for level in range(3)] == pytest.approx(levels)
    assert level_payoffs(1.0, n, 1, 0.0, 1.0) == pytest.approx((1 - FACTORS) * FACTORS ** (n - 1) / (n + 1), abs=1e-5)


def test_who_cannot_lose_bids_least():
    assert level_arm(1, 2, 2, 0.3, 1.0) == 0 and level_payoffs(1.0, 2, 2, 0.0, 1.0) == pytest.approx((1 - FACTORS) / 2)


def test_bidders_are_of_levels_in_turn_and_truthful_where_others_set_the_price():
    people = Population(truthful=2, shader=3, learning="level_k", value_low=0.0)
    memory = opening_memory(people)
    expected = [level_arm(level, 5, 1, 0.0, 1.0) for level in (*LEVELS, LEVELS[0])]
    assert memory[2:].argmax(1).tolist() == expected and not memory[:2].any()
    for first, arm in (True, expected[0]), (False, ARMS - 1):
        assert draw_by_rule(LEVEL_K, memory, memory, 2, np.zeros(MOVES), ARMS, first, BEHAVIOUR, 0.001) == arm


# What rules do

@pytest.mark.parametrize("rule", [EXP3, UCB, Q_LEARNING, REGRET_MATCHING, FICTITIOUS_PLAY])
@pytest.mark.parametrize("known", [NOTHING, EVERYTHING])
def test_a_dominated_arm_is_abandoned(rule, known):
    rng, chances, tries = np.random.default_rng(5), np.zeros(MOVES), np.zeros((1, MOVES))
    memory = np.full((1, MOVES), FIRST_ESTIMATE if rule == Q_LEARNING else 0.0)
    played = []
    for u in rng.random(4000):
        arm = draw_by_rule(rule, memory, tries, 0, chances, ARMS, True, BEHAVIOUR, u)
        payoff = np.full(MOVES, 1.0) + rng.normal(0, 0.1, MOVES)
        payoff[7] -= 1.0
        learn_by_rule(rule, memory, tries, 0, payoff, chances, arm, ARMS, known, True, BEHAVIOUR)
        played.append(arm)
    assert np.mean(np.array(played[1000:]) == 7) < 0.04


def test_evolution_abandons_a_dominated_arm_that_others_are_seen_to_play():
    state = new_market(Population(truthful=1, shader=5, learning="evolution", value_low=0.0, return_rate=0.0), range(20))
    advance(state, FIRST, 400)
    assert state.log_weight[:, 1:, ARMS - 1].mean() < 1 / ARMS / 3   # bidding one's value earns nothing
    assert np.allclose(state.log_weight[:, 1:].sum(2), 1)


@pytest.mark.parametrize("rule", ["exp3", "ucb", "q_learning"])
def test_rules_of_own_payoffs_do_not_look_at_what_is_disclosed(rule):
    shaders = Population(shader=5, learning=rule)
    one, other = (new_market(shaders, range(3)) for _ in range(2))
    advance(one, DEFAULT_MECHANISM.replace(reveal_competing_bids=False, reveal_bid_distribution=False, reveal_clearing_price=False), 30)
    advance(other, DEFAULT_MECHANISM.replace(reveal_competing_bids=True), 30)
    assert np.array_equal(one.log_weight, other.log_weight)


@pytest.mark.parametrize("rule", ["regret_matching", "fictitious_play", "evolution"])
def test_other_rules_learn_more_where_more_is_shown(rule):
    shaders = Population(shader=5, learning=rule)
    one, other = (new_market(shaders, range(3)) for _ in range(2))
    advance(one, HIDDEN, 1)
    advance(other, HIDDEN.replace(reveal_competing_bids=True), 1)
    assert not np.array_equal(one.log_weight, other.log_weight)
    if rule == "fictitious_play":
        assert ((one.tries > 0).sum(2) == 1).all() and ((other.tries > 0).sum(2) == ARMS).all()


@pytest.mark.parametrize("rule", LEARNING_RULES)
def test_an_agent_can_make_a_seat_play_a_trick(rule):
    class Flipper:
        def act(self, state, rows):
            acts = np.zeros((*state.kind.shape, 4))
            acts[:, -1, 0] = FLIP
            return acts

        def learn(self, state, rows, accounts): pass

    people = Population(truthful=3, exploiter=1, learning=rule)
    rules = Mechanism(auction_type="second_price", withdrawal_penalty=0.0)
    told, free = (advance(new_market(people, range(30)), rules, 4, agents=agents) for agents in (Flipper(), None))
    assert told[..., COLUMN.returns].mean() > free[..., COLUMN.returns].mean()


# In the market

def crowds():
    return [Population(learning=rule, **CROWD) for rule in LEARNING_RULES]


def test_a_market_is_the_same_alone_in_company_and_in_any_number_of_threads():
    people = crowds() * 9
    keys = [(3, at) for at in range(len(people))]
    for rules in (DEFAULT_MECHANISM, FIRST, HIDDEN):
        together = simulate(rules, people, keys, 2, threads=1)
        assert same(together, simulate(rules, people, keys, 2, threads=3))
        for at in range(len(LEARNING_RULES)):
            assert same([field[at] for field in together], [field[0] for field in simulate(rules, people[at], [keys[at]], 2)])


def test_rules_differ():
    rewards = [simulate(FIRST, people, range(8), 3).reward.tobytes() for people in crowds()]
    assert len(set(rewards)) == len(LEARNING_RULES)


@pytest.mark.parametrize("rule", LEARNING_RULES)
def test_what_was_learned_is_saved_and_resumed_to_the_bit(rule):
    state, _ = open_market([Population(learning=rule, **CROWD), Population(shader=3)], [1, 2])
    assert same(state, state.copy()) and same(state.select([1, 0]).select([1, 0]), state)
    read = MarketState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert same(advance(state.copy(), FIRST, 6), advance(read, FIRST, 6))
    assert np.array_equal(state.reseed(9).log_weight, state.log_weight)


@pytest.mark.parametrize("rule", LEARNING_RULES)
def test_a_new_market_is_saved_and_resumed_to_the_bit(rule):
    state = new_market(Population(learning=rule, **CROWD), [4])
    read = MarketState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert same(state, read) and same(advance(state, FIRST, 6), advance(read, FIRST, 6))


def test_states_and_populations_of_the_first_edition_are_written_and_read_as_they_were():
    people = Population.stage(4)
    assert not {"learning", "practice"} & people.model_dump().keys() and people == Population(**people.model_dump())
    assert "learning" not in people.to_json() and str(people) == "2 shader, 2 dropout, 2 colluder, 2 exploiter"
    written = new_market(people, 0).to_dict()
    assert set(written) == {"key", "kind", "traits", "round", "log_weight", "belief"} and len(written["traits"][0]) == 6
    read = MarketState.from_dict(written)
    assert read.traits.shape == (1, len(TRAITS)) and read.tries.shape == (1, 0, MOVES) and same(read, new_market(people, 0))


def test_a_population_that_learns_otherwise_says_so():
    people = Population(shader=4, learning="fictitious_play", practice=50)
    assert people == Population.from_json(people.to_json()) != Population(shader=4)
    assert str(people) == "4 shader; fictitious play; 50 sessions of practice"
    assert str(Population(shader=4, n_items=2)) == "4 shader; 2 units"


@pytest.mark.parametrize("wrong, said", [
    (dict(learning="sarsa"), f"^learning must be one of {', '.join(LEARNING_RULES)}, not 'sarsa'$"),
    (dict(learning=2), "^learning must be one of hedge, .*, not 2$"),
    (dict(practice=-1), "practice must be a whole number from 0 to 500, not -1")])
def test_a_rule_that_is_none_is_refused(wrong, said):
    with pytest.raises(PopulationError, match=said):
        Population(shader=3, **wrong)


def test_practice_is_sessions_before_the_warm_up():
    people = [Population(practice=practice, learning=rule, **CROWD) for practice, rule in ((0, "hedge"), (7, "ucb"), (7, "hedge"))]
    together, _ = open_market(people, [5, 6, 7])
    assert together.round.tolist() == [3, 10, 10]
    by_hand = new_market(people[1:2], [6])
    advance(by_hand, DEFAULT_MECHANISM, 10)
    assert same([field[1] for field in together._replace(tries=together.tries)], [field[0] for field in by_hand])


def test_evolution_is_told_apart_by_what_is_shown():
    """Where bids are hidden a bidder compares its own payoff with a competitive market's: only its own arm moves alone."""
    state = new_market(Population(truthful=1, shader=3, learning="evolution"), [2])
    advance(state, HIDDEN, 1)
    for row in state.log_weight[0, 1:, :ARMS]:
        assert len(np.unique(row.round(12))) <= 2


# Who is trained on what

def test_held_out_rules_are_met_by_no_training():
    assert {"ucb", "fictitious_play"} <= set(HELD_OUT_RULES) < set(LEARNING_RULES) and len(HELD_OUT_RULES) >= 3
    drawn = [draw_training_population(seed) for seed in range(300)]
    assert not {people.learning for people in drawn} & set(HELD_OUT_RULES)


def test_families_are_balanced():
    people = suite("families")
    assert people == draw_families() and len(set(people)) == len(people) == FAMILY * len(HELD_OUT_RULES)
    for rule in HELD_OUT_RULES:
        family = [each for each in people if each.learning == rule]
        assert len(family) == FAMILY >= 12
        assert [sum(each.practice == count for each in family) for count in PRACTISED] == [FAMILY // 3] * 3
        assert [sum(each.n_items == count for each in family) for count in (1, 2, 3)] == [FAMILY // 3] * 3
        assert sum(each.truthful == 0 for each in family) == FAMILY // 2
        assert all(4 <= each.bidders <= 12 and each.truthful <= each.bidders / 2 for each in family)


def test_threads_share_a_batch_of_many_rules():
    people = crowds() * 9
    states = []
    for threads in (1, 2):
        with runtime.use_threads(threads):
            state = new_market(people, np.arange(len(people)))
            advance(state, PRICES, 4)
        states.append(state)
    assert same(*states)


def test_every_rule_has_at_least_three_fifths_of_hedges_rate():
    """By processor time, the best of five turns in which all rules run, each with eight bidders who learn."""
    mechanisms, fastest = [Mechanism.random(at) for at in range(64)], dict.fromkeys(LEARNING_RULES, math.inf)
    for rule in LEARNING_RULES * 6:
        people = Population(shader=2, dropout=2, colluder=2, exploiter=2, learning=rule)
        start = time.process_time()
        with runtime.use_threads(1): simulate(mechanisms, people, range(64), steps=2)
        fastest[rule] = min(fastest[rule], time.process_time() - start)
    rates = {rule: fastest["hedge"] / spent for rule, spent in fastest.items()}
    assert min(rates.values()) >= 0.6, rates
