%% @doc Leases of money: none beyond a limit, all that were promised.
-module(budget_core_tests).

%% Both define LET; that of PropEr is used here.
-include_lib("eunit/include/eunit.hrl").
-undef(LET).
-include_lib("proper/include/proper.hrl").

-define(ACCOUNTS, [<<"none:tenant:">>, <<"day:agent:a">>, <<"month:key:k:1">>]).

no_lease_goes_beyond_a_limit_and_whoever_was_told_ok_has_his_money_test_() ->
    {timeout, 60, fun() -> ?assert(proper:quickcheck(prop_plan(), [{numtests, 500}, {to_file, user}])) end}.

prop_plan() ->
    ?FORALL({Wants, Rows}, {list(want()), rows()},
            begin
                Ids = lists:seq(1, length(Wants)),
                Numbered = [{case Waits of true -> N; false -> 0 end, Needs} || {N, {Waits, Needs}} <- lists:zip(Ids, Wants)],
                {Grants, Answers} = budget_core:plan(Numbered, Rows, 0),
                Ok = [Id || {Id, ok} <- Answers],
                Within = [begin
                              #{spent := S, lent := L} = maps:get(Account, Rows, #{spent => 0, lent => 0}),
                              Amount > 0 andalso S + L + Amount =< limit(Account)
                          end || {Account, {Amount, _}} <- maps:to_list(Grants)],
                Enough = [begin
                              Short = lists:sum([Sh || {Id, Needs} <- Numbered, lists:member(Id, Ok), {A, _, Sh} <- Needs, A =:= Account]),
                              {Amount, _} = maps:get(Account, Grants, {0, 0}),
                              Short =< Amount
                          end || Account <- ?ACCOUNTS],
                Answered = [Id || {Id, _} <- Answers] =:= [Id || {Id, _} <- Numbered, Id > 0],
                lists:all(fun(True) -> True end, [Answered | Within ++ Enough])
            end).

limit(<<"none:tenant:">>) -> 1000;
limit(_) -> 600.

want() ->
    {boolean(), ?LET(Needs, non_empty(list({elements(?ACCOUNTS), range(1, 400)})),
                     [{A, limit(A), Short} || {A, Short} <- lists:ukeysort(1, Needs)])}.

rows() ->
    ?LET(Spent, list({elements(?ACCOUNTS), {range(0, 900), range(-50, 300), range(0, 300)}}),
         maps:from_list([{A, #{window_ms => 0, spent => S, lent => L, rate => R}} || {A, {S, L, R}} <- Spent])).

a_refusal_names_the_account_and_when_it_begins_anew_test() ->
    Day = <<"day:tenant:">>,
    {#{}, [{7, Refusal}]} = budget_core:plan([{7, [{Day, 100, 60}]}], #{Day => #{window_ms => 0, spent => 40, lent => 10, rate => 0}}, 5),
    ?assertEqual(#{account => Day, limit => 100, spent => 40, lent => 10, resets_ms => 86400000}, Refusal).

a_second_of_what_was_spent_lately_is_lent_test() ->
    A = <<"none:tenant:">>,
    Rows = #{A => #{window_ms => 0, spent => 0, lent => 0, rate => 300}},
    ?assertMatch({#{A := {310, 1000}}, [{1, ok}]}, budget_core:plan([{1, [{A, 1000, 10}]}], Rows, 0)),
    ?assertMatch({#{A := {250, 250}}, [{1, ok}]}, budget_core:plan([{1, [{A, 250, 10}]}], Rows, 0)).

windows_are_those_of_utc_test() ->
    At = fun(Date) -> (calendar:datetime_to_gregorian_seconds(Date) - 62167219200) * 1000 end,
    Now = At({{2024, 12, 31}, {23, 59, 59}}) + 999,
    ?assertEqual(At({{2024, 12, 31}, {0, 0, 0}}), budget_core:window_ms(<<"day:tenant:">>, Now)),
    ?assertEqual(At({{2024, 12, 1}, {0, 0, 0}}), budget_core:window_ms(<<"month:agent:x:y">>, Now)),
    ?assertEqual(At({{2025, 1, 1}, {0, 0, 0}}), budget_core:resets_ms(<<"month:agent:x:y">>, Now)),
    ?assertEqual({0, 0}, {budget_core:window_ms(<<"none:task:1">>, Now), budget_core:resets_ms(<<"none:task:1">>, Now)}),
    ?assertEqual({<<"month">>, <<"agent">>, <<"x:y">>}, budget_core:split(<<"month:agent:x:y">>)).
