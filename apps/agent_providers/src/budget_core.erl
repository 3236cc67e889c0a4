%% @doc Which leases of money are given, which are refused: pure. Amounts are pico-dollars.
%%
%% A lease covers what the waiting calls lack and as much again, at least a second of what was spent lately, and never more than is
%% left: `spent + lent' stays within the limit of every account.
-module(budget_core).

-export([plan/3]).
-export([window_ms/2]).
-export([resets_ms/2]).
-export([split/1]).

-export_type([account/0, row/0, rows/0, want/0, need/0, refusal/0]).

%% `WINDOW:LEVEL:NAME'.
-type account() :: binary().
-type row() :: #{window_ms := non_neg_integer(), spent := integer(), lent := integer(), rate := non_neg_integer()}.
-type rows() :: #{account() => row()}.
-type need() :: {account(), Limit :: integer(), Short :: integer()}.
%% The number 0: nobody waits, a lease runs low.
-type want() :: {Id :: non_neg_integer(), [need()]}.
-type refusal() :: #{account := account(), limit := integer(), spent := integer(), lent := integer(), resets_ms := non_neg_integer()}.

-define(DAY_MS, 86400000).

%% @doc Grants by account, with its limit, and an answer for every want, in order.
-spec plan([want()], rows(), Now :: integer()) -> {#{account() => {pos_integer(), integer()}}, [{non_neg_integer(), ok | refusal()}]}.
plan(Wants, Rows, Now) ->
    {Planned, Answers} = lists:foldl(fun(Want, {P, A}) -> one(Want, Rows, Now, P, A) end, {#{}, []}, Wants),
    Grants = maps:map(fun(Account, {Amount, Limit}) ->
                              Left = Limit - taken(Account, Rows) - Amount,
                              {Amount + max(0, min(Left, max(rate(Account, Rows), Amount))), Limit}
                      end, Planned),
    {Grants, lists:reverse(Answers)}.

-spec one(want(), rows(), integer(), Planned, Answers) -> {Planned, Answers}
    when Planned :: #{account() => {pos_integer(), integer()}}, Answers :: [{non_neg_integer(), ok | refusal()}].
one({0, Needs}, Rows, _, Planned, Answers) ->
    Add = fun({Account, Limit, Short}, P) -> add(Account, Limit, min(Short, left(Account, Limit, Rows, P)), P) end,
    {lists:foldl(Add, Planned, Needs), Answers};
one({Id, Needs}, Rows, Now, Planned, Answers) ->
    case [N || {Account, Limit, Short} = N <- Needs, Short > left(Account, Limit, Rows, Planned)] of
        [] ->
            {lists:foldl(fun({Account, Limit, Short}, P) -> add(Account, Limit, Short, P) end, Planned, Needs), [{Id, ok} | Answers]};
        [{Account, Limit, _} | _] ->
            #{spent := Spent, lent := Lent} = maps:get(Account, Rows, #{spent => 0, lent => 0}),
            {Pending, _} = maps:get(Account, Planned, {0, Limit}),
            Refusal = #{account => Account, limit => Limit, spent => Spent, lent => Lent + Pending, resets_ms => resets_ms(Account, Now)},
            {Planned, [{Id, Refusal} | Answers]}
    end.

-spec add(account(), integer(), integer(), Planned) -> Planned when Planned :: #{account() => {pos_integer(), integer()}}.
add(_, _, Amount, Planned) when Amount =< 0 -> Planned;
add(Account, Limit, Amount, Planned) ->
    {Old, _} = maps:get(Account, Planned, {0, Limit}),
    Planned#{Account => {Old + Amount, Limit}}.

-spec left(account(), integer(), rows(), #{account() => {pos_integer(), integer()}}) -> integer().
left(Account, Limit, Rows, Planned) ->
    {Pending, _} = maps:get(Account, Planned, {0, Limit}),
    Limit - taken(Account, Rows) - Pending.

-spec taken(account(), rows()) -> integer().
taken(Account, Rows) ->
    case Rows of
        #{Account := #{spent := Spent, lent := Lent}} -> Spent + Lent;
        #{} -> 0
    end.

-spec rate(account(), rows()) -> non_neg_integer().
rate(Account, Rows) ->
    case Rows of
        #{Account := #{rate := Rate}} -> Rate;
        #{} -> 0
    end.

%% @doc When the window of an account began, in ms since 1970; 0 where it has none.
-spec window_ms(account(), Now :: integer()) -> non_neg_integer().
window_ms(Account, Now) ->
    case split(Account) of
        {<<"day">>, _, _} -> Now - Now rem ?DAY_MS;
        {<<"month">>, _, _} -> month_ms(Now, 0);
        _ -> 0
    end.

%% @doc When the next one begins; 0: never.
-spec resets_ms(account(), Now :: integer()) -> non_neg_integer().
resets_ms(Account, Now) ->
    case split(Account) of
        {<<"day">>, _, _} -> Now - Now rem ?DAY_MS + ?DAY_MS;
        {<<"month">>, _, _} -> month_ms(Now, 1);
        _ -> 0
    end.

-spec month_ms(integer(), 0 | 1) -> non_neg_integer().
month_ms(Now, Ahead) ->
    {{Year, Month, _}, _} = calendar:system_time_to_universal_time(Now, millisecond),
    N = Year * 12 + Month - 1 + Ahead,
    Seconds = calendar:datetime_to_gregorian_seconds({{N div 12, N rem 12 + 1, 1}, {0, 0, 0}}),
    (Seconds - calendar:datetime_to_gregorian_seconds({{1970, 1, 1}, {0, 0, 0}})) * 1000.

%% @doc Window, level and name of an account.
-spec split(account()) -> {Window :: binary(), Level :: binary(), Name :: binary()}.
split(Account) ->
    [Window, Rest] = binary:split(Account, <<":">>),
    [Level, Name] = binary:split(Rest, <<":">>),
    {Window, Level, Name}.
