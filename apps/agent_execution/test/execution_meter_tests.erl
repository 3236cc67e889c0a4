%% @doc Sums of what steps have used, and their proofs.
-module(execution_meter_tests).

-include_lib("eunit/include/eunit.hrl").

calls_add_up_test() ->
    Call = #{usage => #{input => 3, output => 2}, cost_micros => 5, replayed => true},
    Meter = execution_meter:tool(execution_meter:call(Call, execution_meter:call(Call, execution_meter:new()))),
    ?assertMatch(#{input_tokens := 6, output_tokens := 4, provider_calls := 2, provider_calls_replayed := 2, cost_micros := 10}, Meter),
    ?assertEqual(2, maps:get(tool_calls, execution_meter:add(Meter, Meter))).

what_has_no_call_has_no_cost_and_what_else_is_measured_stays_test() ->
    ?assertNot(is_map_key(cost_micros, execution_meter:tool(#{}))),
    Meter = execution_meter:call(#{usage => #{}, cost_micros => 4}, execution_meter:tool(#{memory_bytes => 7})),
    ?assertMatch(#{memory_bytes := 7, tool_calls := 1, provider_calls := 1, cost_micros := 4}, Meter),
    Unknown = execution_meter:call(#{usage => #{}}, Meter),
    ?assertNot(is_map_key(cost_micros, execution_meter:call(#{usage => #{}, cost_micros => 4}, Unknown))).

one_unknown_price_makes_the_sum_unknown_test() ->
    Unknown = execution_meter:call(#{usage => #{}}, execution_meter:new()),
    ?assertNot(is_map_key(cost_micros, Unknown)),
    ?assertNot(is_map_key(cost_micros, execution_meter:add(execution_meter:new(), Unknown))).

a_proof_of_several_claims_no_more_than_the_weakest_test() ->
    Sure = #{witness => namespace, host_pid => 1, confirmed_dead => true, signals => [#{name => <<"KILL">>}], survivors => [],
             duration_us => 5},
    Walk = #{witness => descendants, host_pid => 2, confirmed_dead => true, signals => [], survivors => [], duration_us => 9},
    Unsure = #{witness => unconfirmed, host_pid => 3, confirmed_dead => false, survivors => [3]},
    ?assertMatch(#{witness := descendants, confirmed_dead := true, duration_us := 9}, cancellation_proof:all([Sure, Walk])),
    ?assertMatch(#{witness := unconfirmed, confirmed_dead := false, survivors := [3]}, cancellation_proof:all([Sure, Unsure, Walk])),
    ?assertMatch(#{witness := none_needed, confirmed_dead := true}, cancellation_proof:all([execution_core:no_proof_needed()])).
